"""Building blocks of the distillation methods: masks and labels on a feature grid, nodes, class means, divergences.

Pure functions of arrays that compute in float32. Under pmap each device holds a part of the batch: `masked_mean` in
core/losses.py averages over all devices, and `gathered` collects the parts when samples are compared with each other.
"""

import jax
import jax.numpy as jnp

from hfd_jax.core.collectives import sample_offset
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.losses import EPS

_NEVER = -1e30  # a score of probability 0 that stays finite in subtractions


def mask_at(valid, shape):
    """Reduces a pixel mask [B, H, W] to a feature grid (h, w); a position is valid if at least half its pixels are.

    Raises:
      ValueError: If H and W are not multiples of h and w.
    """
    (batch, height, width), (h, w) = valid.shape, shape
    if height % h or width % w:
        raise ValueError(f"a mask of {height} x {width} pixels does not divide into {h} x {w} feature positions")
    share = valid.astype(jnp.float32).reshape(batch, h, height // h, w, width // w).mean((2, 4))
    return share >= 0.5


def label_at(label, valid, shape):
    """Samples labels [B, H, W] at the centre of each position of a feature grid (h, w): [B, h, w] int32.

    The result is IGNORE_LABEL if the centre pixel or more than half of the position's pixels are invalid.
    """
    (_, height, width), (h, w) = label.shape, shape
    seen = jnp.where(valid, label, IGNORE_LABEL).astype(jnp.int32)
    centres = seen[:, height // h // 2 :: height // h, width // w // 2 :: width // w]
    return jnp.where(mask_at(valid, shape), centres, IGNORE_LABEL)


def resized(x, mask, shape):
    """Resizes x [B, h, w, C] to (H, W) bilinearly from the positions in `mask` [B, h, w]; float32, 0 far from them."""
    weights = mask[..., None].astype(jnp.float32)
    target = (x.shape[0], *shape, x.shape[-1])
    total = jax.image.resize(x.astype(jnp.float32) * weights, target, "bilinear")
    return total / jnp.maximum(jax.image.resize(weights, (*target[:3], 1), "bilinear"), EPS)


def unit(x):
    """Normalises x to length 1 along the last axis."""
    return x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + EPS)


def similarities(x, y):
    """Inner products of x [..., n, C] and y [..., m, C]: [..., n, m]."""
    # Accelerators round the factors to lower precision by default.
    return jnp.einsum("...nc,...mc->...nm", x, y, precision=jax.lax.Precision.HIGHEST)


def masked_log_softmax(scores, mask, axis: int):
    """Log-softmax along an axis over the entries where `mask` is true; about -1e30 elsewhere."""
    return jax.nn.log_softmax(jnp.where(mask, scores, _NEVER), axis)


def divergence(target, scores, mask=None, axis: int = -1):
    """KL(softmax(target) || softmax(scores)) along an axis.

    Args:
      target, scores: float32 of the same shape.
      mask: bool, broadcastable to the scores; the entries to include, None for all.
      axis: axis of the distributions.

    Returns:
      The divergences, without the axis; 0 if no entry is included.
    """
    everything = True if mask is None else mask
    log_p, log_q = (masked_log_softmax(x, everything, axis) for x in (target, scores))
    return jnp.sum(jnp.where(everything, jnp.exp(log_p) * (log_p - log_q), 0.0), axis)


def nodes(x, mask, per_axis: int):
    """Averages x over square cells of the grid, at most `per_axis` cells along each axis.

    Args:
      x: [B, h, w, C].
      mask: [B, h, w] bool; the positions to include.
      per_axis: maximum number of cells along each axis.

    Returns:
      The means [B, n, C] float32, and [B, n] bool, true for cells with a valid position.
    """
    batch, height, width, _ = x.shape
    cell = -(-max(height, width) // per_axis)
    rows, columns = -(-height // cell), -(-width // cell)
    padding = ((0, 0), (0, rows * cell - height), (0, columns * cell - width), (0, 0))
    weights = mask[..., None].astype(jnp.float32)

    def total(values):
        cells = jnp.pad(values, padding).reshape(batch, rows, cell, columns, cell, -1)
        return cells.sum((2, 4)).reshape(batch, rows * columns, -1)

    count = total(weights)
    return total(x.astype(jnp.float32) * weights) / jnp.maximum(count, 1.0), count[..., 0] > 0


def class_means(x, label, classes: int):
    """Averages x over the positions of each class, per sample.

    Args:
      x: [B, N, C].
      label: [B, N] integers; positions with IGNORE_LABEL are left out.
      classes: number of classes K.

    Returns:
      The means [B, K, C], and [B, K] bool, true for classes that occur.
    """
    belongs = jax.nn.one_hot(label, classes)
    count = belongs.sum(1)
    total = jnp.einsum("bnk,bnc->bkc", belongs, x, precision=jax.lax.Precision.HIGHEST)
    return total / jnp.maximum(count, 1.0)[..., None], count > 0


def sample_keys(key, batch: int):
    """Returns one key per sample of this device; a sample's key does not depend on the number of devices."""
    first = sample_offset(batch)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(first + jnp.arange(batch))
