"""Segmentation losses and masked means, computed in float32.

Every loss is a mean over valid pixels, so its scale does not depend on batch size, image size or number of devices.
Under pmap each device holds part of the batch: `collectives.global_sum` sums numerator and count over the devices
before the division. The gradient of such a loss must then be averaged over the devices.
"""

import jax
import jax.numpy as jnp

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
    truth = one_hot(label, logits.shape[-1])
    # Selected with the mask that Dice uses, not with a gather, whose gradient is a scatter.
    chosen = jnp.where(truth, jax.nn.log_softmax(logits.astype(jnp.float32)), 0.0)
    weights = jnp.sum(truth * jnp.asarray(1.0 if class_weights is None else class_weights, jnp.float32), -1)
    total = -global_sum(jnp.sum(jnp.sum(chosen, -1) * weights))
    return total / jnp.maximum(global_sum(jnp.sum(weights)), EPS)


def one_hot(label, classes: int):
    """label [B, H, W] -> [B, H, W, classes] bool; IGNORE_LABEL belongs to no class."""
    return (label[..., None] == jnp.arange(classes, dtype=label.dtype)) & (label != IGNORE_LABEL)[..., None]


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
    truth = one_hot(label, logits.shape[-1]).astype(jnp.float32)
    sums = jnp.stack([jnp.sum(x, (0, 1, 2)) for x in (probability * truth, probability, truth)])
    count = jnp.maximum(global_sum(jnp.sum(valid)), 1.0)
    overlap, predicted, present = global_sum(sums) / count
    dice = (2 * overlap + EPS) / (predicted + present + EPS)
    occurring = present > 0
    return jnp.sum((1 - dice) * occurring) / jnp.maximum(jnp.sum(occurring), 1)
