"""Bilinear upsampling, and convolutions of upsampled maps.

Both are linear along one axis after the other. On the CPU they are products with small matrices. On an accelerator such
a product transposes the map before and after it, so there each output pixel is a weighted sum of its neighbours, which
the compiler fuses with what follows.
"""

import jax
import jax.numpy as jnp
import numpy as np

from hfd_jax.core.platform import on_cpu


def upsample(x, shape):
    """Resizes x [B, h, w, C] to `shape` (H, W) bilinearly, with half-pixel centres and repeated border values."""
    if on_cpu() or not _whole_factors(x.shape[1:3], shape):
        return jax.image.resize(x, (x.shape[0], *shape, x.shape[-1]), "bilinear")
    for axis, large in zip((1, 2), shape, strict=True):
        x = _resample(jnp.expand_dims(x, 3), axis, large)
    return x


def convolve_upsampled(x, kernel, shape):
    """Convolves upsample(x, shape) with a kernel and zero padding, without computing upsample(x, shape).

    Both operations are linear: each kernel position is applied to the small map, and the results are upsampled, shifted
    and added, one axis after the other. This takes a fraction of the operations (a 27th if x is 8 times smaller).

    Args:
      x: [B, h, w, C].
      kernel: [k, k, C, D]; k must be odd.
      shape: (H, W).

    Returns:
      [B, H, W, D].
    """
    batch, h, w, channels = x.shape
    k, _, _, features = kernel.shape
    parts = x.reshape(-1, channels) @ kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    parts = parts.reshape(batch, h, w, k, k, features)
    if on_cpu() or not _whole_factors((h, w), shape):
        rows, cols = (
            _shifted_upsampling(small, large, k).astype(x.dtype) for small, large in zip((h, w), shape, strict=True)
        )
        return jnp.einsum("xjw,bywjd->byxd", cols, jnp.einsum("yih,bhwijd->bywjd", rows, parts))
    for axis, large in zip((1, 2), shape, strict=True):
        parts = _resample(parts, axis, large)
    return parts


def _whole_factors(small, large) -> bool:
    return all(new % old == 0 for old, new in zip(small, large, strict=True))


def _resample(x, axis: int, large: int):
    """Upsamples and shifts the maps x[:, :, :, k] by k - K // 2 along an axis, and adds them.

    Each output is a weighted sum of its position in the small map and of that one's neighbours, which the compiler
    computes in one loop.

    Args:
      x: [B, h, w, K, ...].
      axis: 1 or 2.
      large: length of the axis afterwards, a multiple of its length.

    Returns:
      [B, H, w, ...] or [B, h, W, ...] of x's dtype, 0 where the shift reaches outside.
    """
    small, kernel = x.shape[axis], x.shape[3]
    factor = large // small
    weights = _shifted_upsampling(small, large, kernel).reshape(small, factor, kernel, small)
    reach = int(np.abs(np.subtract(*np.nonzero(weights)[::3])).max())
    border = [(0, 0)] * x.ndim
    border[axis] = (reach, reach)
    padded, total = jnp.pad(x, border), 0.0
    for k in range(kernel):
        for shift in range(-reach, reach + 1):
            diagonal = [np.diagonal(weights[:, phase, k], shift) for phase in range(factor)]
            factors = np.pad(np.stack(diagonal, 1), ((max(-shift, 0), max(shift, 0)), (0, 0)))
            if factors.any():
                start = reach + shift
                y = jax.lax.slice_in_dim(padded[:, :, :, k], start, start + small, axis=axis)
                y = jnp.expand_dims(y, axis + 1).astype(jnp.float32)
                total += y * factors.reshape(small, factor, *(1,) * (y.ndim - axis - 2))
    return total.reshape(*total.shape[:axis], large, *total.shape[axis + 2 :]).astype(x.dtype)


def _shifted_upsampling(small: int, large: int, kernel: int):
    """[large, kernel, small]: weight of x[j] in upsample(x)[i + k - kernel // 2], 0 outside; small <= large."""
    pad = kernel // 2
    position = (np.arange(large, dtype=np.float32) + 0.5) * np.float32(small / large) - 0.5
    position = np.clip(position, 0, small - 1)[:, None]
    weights = np.maximum(1 - np.abs(position - np.arange(small, dtype=np.float32)), 0)
    padded = np.pad(weights, ((pad, pad), (0, 0)))
    return np.stack([padded[k : k + large] for k in range(kernel)], 1)
