"""What the distillation methods share: masks and labels on a feature's grid, nodes, class means, divergences.

Arrays in, arrays out, float32 inside. Under pmap every device holds a part of the batch (`losses.masked_mean` says how
means become global); `gathered` brings the parts together where samples are compared with one another.
"""

import jax
import jax.numpy as jnp

from hfd_jax.core.collectives import sample_offset
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.losses import EPS

_NEVER = -1e30  # as a score: probability 0, and still finite after subtractions


def mask_at(valid, shape):
    """Reduces a pixel mask [B, H, W] to a feature grid (h, w): a position counts when half its pixels do.

    Raises:
      ValueError: where H, W are no multiples of h, w.
    """
    (batch, height, width), (h, w) = valid.shape, shape
    if height % h or width % w:
        raise ValueError(f"a mask of {height} x {width} pixels does not divide into {h} x {w} feature positions")
    share = valid.astype(jnp.float32).reshape(batch, h, height // h, w, width // w).mean((2, 4))
    return share >= 0.5


def label_at(label, valid, shape):
    """The label [B, H, W] of the pixel in the middle of each position of a feature grid (h, w): [B, h, w] int32.

    IGNORE_LABEL where that pixel, or half of the position's pixels, are not valid.
    """
    (_, height, width), (h, w) = label.shape, shape
    seen = jnp.where(valid, label, IGNORE_LABEL).astype(jnp.int32)
    centres = seen[:, height // h // 2 :: height // h, width // w // 2 :: width // w]
    return jnp.where(mask_at(valid, shape), centres, IGNORE_LABEL)


def resized(x, mask, shape):
    """Bilinear resize of the valid positions of x [B, h, w, C], mask [B, h, w], to (H, W); float32, 0 far from them."""
    weights = mask[..., None].astype(jnp.float32)
    target = (x.shape[0], *shape, x.shape[-1])
    total = jax.image.resize(x.astype(jnp.float32) * weights, target, "bilinear")
    return total / jnp.maximum(jax.image.resize(weights, (*target[:3], 1), "bilinear"), EPS)


def unit(x):
    """x / |x| along the last axis."""
    return x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + EPS)


def similarities(x, y):
    """Inner products of x [..., n, C] with y [..., m, C]: [..., n, m]."""
    # The accelerators' default would round the factors to fewer digits.
    return jnp.einsum("...nc,...mc->...nm", x, y, precision=jax.lax.Precision.HIGHEST)


def masked_log_softmax(scores, mask, axis: int):
    """Log-probabilities along an axis over the entries where `mask` is true; some -1e30 elsewhere."""
    return jax.nn.log_softmax(jnp.where(mask, scores, _NEVER), axis)


def divergence(target, scores, mask=None, axis: int = -1):
    """KL(softmax(target) || softmax(scores)) along an axis.

    Args:
      target, scores: float32 of the same shape.
      mask: bool, broadcastable to them: the entries that take part; None for all.
      axis: of the distributions.

    Returns:
      Their shape without the axis; 0 where no entry takes part.
    """
    everything = True if mask is None else mask
    log_p, log_q = (masked_log_softmax(x, everything, axis) for x in (target, scores))
    return jnp.sum(jnp.where(everything, jnp.exp(log_p) * (log_p - log_q), 0.0), axis)


def nodes(x, mask, most: int):
    """Means over square cells of the grid, of which at most `most` lie along either axis.

    Args:
      x: [B, h, w, C].
      mask: [B, h, w] bool; other positions count in no mean.

    Returns:
      ([B, n, C] float32, [B, n] bool: cells with a valid position).
    """
    batch, height, width, _ = x.shape
    cell = -(-max(height, width) // most)
    rows, columns = -(-height // cell), -(-width // cell)
    padding = ((0, 0), (0, rows * cell - height), (0, columns * cell - width), (0, 0))
    weights = mask[..., None].astype(jnp.float32)

    def total(values):
        cells = jnp.pad(values, padding).reshape(batch, rows, cell, columns, cell, -1)
        return cells.sum((2, 4)).reshape(batch, rows * columns, -1)

    count = total(weights)
    return total(x.astype(jnp.float32) * weights) / jnp.maximum(count, 1.0), count[..., 0] > 0


def class_means(x, label, classes: int):
    """Mean of x [B, N, C] over the positions of each class, per sample.

    Args:
      label: [B, N] integers; IGNORE_LABEL counts nowhere.

    Returns:
      ([B, K, C], [B, K] bool: classes that occur).
    """
    belongs = jax.nn.one_hot(label, classes)
    count = belongs.sum(1)
    total = jnp.einsum("bnk,bnc->bkc", belongs, x, precision=jax.lax.Precision.HIGHEST)
    return total / jnp.maximum(count, 1.0)[..., None], count > 0


def sample_keys(key, batch: int):
    """One key for each of this device's samples; a sample has the same one on any number of devices."""
    first = sample_offset(batch)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(first + jnp.arange(batch))
