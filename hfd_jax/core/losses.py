"""Segmentation losses and masked means, computed in float32.

Every loss is a mean over valid pixels, so its scale does not depend on batch size, image size or number of devices.
Under pmap each device holds part of the batch: `collectives.global_sum` sums numerator and count over the devices
before the division. The gradient of such a loss must then be averaged over the devices.
"""

import jax
import jax.numpy as jnp
import optax

from hfd_jax.core.collectives import global_sum
from hfd_jax.core.labels import IGNORE_LABEL

EPS = 1e-6
TINY = 1e-30  # keeps a norm of 0 out of a denominator without affecting any other


def masked_mean(values, mask):
    """Mean of `values` where `mask` is true; 0 if nothing is valid.

    Args:
      values: float array.
      mask: bool array or float weights, broadcastable to `values`.

    Returns:
      float32 scalar.
    """
    weights = jnp.broadcast_to(mask, values.shape).astype(jnp.float32)
    total = global_sum(jnp.sum(values.astype(jnp.float32) * weights))
    return total / jnp.maximum(global_sum(jnp.sum(weights)), 1.0)


def cross_entropy(logits, label, class_weights=None):
    """Pixel-wise softmax cross-entropy.

    Args:
      logits: [B, H, W, K].
      label: [B, H, W] integers; pixels with IGNORE_LABEL are excluded.
      class_weights: [K] with a mean of about 1, or None; weights of the mean over pixels.

    Returns:
      float32 scalar, 0 if no pixel is labelled.
    """
    valid = label != IGNORE_LABEL
    target = jnp.where(valid, label, 0).astype(jnp.int32)
    per_pixel = optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target)
    weights = (
        valid.astype(jnp.float32) if class_weights is None else valid * jnp.asarray(class_weights, jnp.float32)[target]
    )
    total = global_sum(jnp.sum(per_pixel * weights))
    return total / jnp.maximum(global_sum(jnp.sum(weights)), EPS)


def soft_dice(logits, label):
    """1 - soft Dice coefficient (Milletari et al. 2016), averaged over the classes present in the labels.

    The formula's sums over the whole batch are computed as means over its valid pixels, so that EPS has the same
    effect at every size.

    Args:
      logits: [B, H, W, K].
      label: [B, H, W] integers; pixels with IGNORE_LABEL are excluded.

    Returns:
      float32 scalar, 0 if no pixel is labelled.
    """
    valid = (label != IGNORE_LABEL)[..., None].astype(jnp.float32)
    probability = jax.nn.softmax(logits.astype(jnp.float32)) * valid
    truth = jax.nn.one_hot(jnp.where(label == IGNORE_LABEL, -1, label), logits.shape[-1]) * valid
    sums = jnp.stack([jnp.sum(x, (0, 1, 2)) for x in (probability * truth, probability, truth)])
    count = jnp.maximum(global_sum(jnp.sum(valid)), 1.0)
    overlap, predicted, present = global_sum(sums) / count
    dice = (2 * overlap + EPS) / (predicted + present + EPS)
    occurring = present > 0
    return jnp.sum((1 - dice) * occurring) / jnp.maximum(jnp.sum(occurring), 1)
