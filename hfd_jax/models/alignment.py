"""Heterogeneous feature alignment module (HFAM): aggregates the encoder's scales into one map.

HFD-Net names the module; the equations are this project's own (see docs/paper.md). The closest published methods are
SFNet (Li et al. 2020, semantic flow) and FaPN (Huang et al. 2021, feature selection).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from hfd_jax.models.layers import BatchNorm, JoinedConvolution, convolution
from hfd_jax.models.resnet import STAGES, STRIDES
from hfd_jax.models.upsampling import upsample

LEVELS = STAGES
ALIGNMENTS = ("flow", "none")


def warp(x, flow):
    """Upsamples a coarse map bilinearly along a displacement field.

    Args:
      x: the coarse map [B, h, w, C].
      flow: [B, H, W, 2] displacement (dy, dx) in pixels of the OUTPUT grid: output pixel (i, j) takes the value that
        plain upsampling has at (i + dy, j + dx).

    Returns:
      [B, H, W, C] of x's dtype. Positions have half-pixel centres; border values extend outside the map.
    """
    (batch, h, w, channels), (_, height, width, _) = x.shape, flow.shape
    # Always float32: bfloat16 cannot address a map wider than 256 pixels.
    flow = flow.astype(jnp.float32)
    rows = (jnp.arange(height)[:, None] + 0.5 + flow[..., 0]) * (h / height) - 0.5
    cols = (jnp.arange(width)[None, :] + 0.5 + flow[..., 1]) * (w / width) - 0.5
    rows, cols = jnp.clip(rows, 0, h - 1), jnp.clip(cols, 0, w - 1)
    top, left = jnp.floor(rows), jnp.floor(cols)
    down, right = (rows - top)[..., None], (cols - left)[..., None]

    # The four neighbours of every position lie side by side, so that one gather reads them and, in the backward pass,
    # one scatter adds their gradients. Both are float32: sums of many bfloat16 gradients would lose precision.
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    corners = [padded[:, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)]
    neighbours = jnp.concatenate(corners, -1).reshape(batch, h * w, 4 * channels)
    index = (top.astype(jnp.int32) * w + left.astype(jnp.int32)).reshape(batch, -1, 1)
    found = jnp.take_along_axis(neighbours, index, 1, mode="promise_in_bounds")
    found = found.reshape(batch, height, width, 4, channels)
    upper = found[..., 0, :] * (1 - right) + found[..., 1, :] * right
    lower = found[..., 2, :] * (1 - right) + found[..., 3, :] * right
    return (upper * (1 - down) + lower * down).astype(x.dtype)


def box_mean(x, box: int):
    """Averages x over a box of `box` x `box` positions around each position; at the border the box moves inwards.

    A gate trained on means over whole crops then receives means over crop-sized boxes in a larger map: its input has
    the same distribution as in training, whatever the size of the map ("test-time local converter", Chu et al. 2022).

    Args:
      x: [B, H, W, C].
      box: edge of the box in positions. An axis that is no longer than the box is averaged as a whole; 0 averages
        both axes as a whole.

    Returns:
      [B, H or 1, W or 1, C] of x's dtype; an axis averaged as a whole has length 1.
    """
    height, width = x.shape[1:3]
    if not box or max(height, width) <= box:
        return x.mean((1, 2), keepdims=True)
    rows, cols = (_box_weights(length, box) for length in (height, width))
    return jnp.einsum("ih,jw,bhwc->bijc", rows, cols, x).astype(x.dtype)


def _box_weights(length: int, box: int) -> np.ndarray:
    """[length, length], row i averages the box around position i; [1, length] if the box covers the whole axis."""
    if length <= box:
        return np.full((1, length), 1 / length, np.float32)
    start = np.clip(np.arange(length) - box // 2, 0, length - box)[:, None]
    position = np.arange(length)
    return np.where((position >= start) & (position < start + box), np.float32(1 / box), np.float32(0))


class Selection(nn.Module):
    """Lateral connection with channel attention: L' = conv1x1(L + sigmoid(conv1x1(GAP(L))) * L), L = BN(conv1x1(C)).

    Attributes:
      channels: number of channels of L and L'.
      box: edge in positions of the box that GAP averages over (`box_mean`); 0: the whole map.
      dtype: computation dtype.
    """

    channels: int
    box: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        conv = partial(convolution, self.channels, 1, dtype=self.dtype)
        x = BatchNorm(train, self.dtype, name="bn")(conv(name="lateral")(x))
        gate = nn.sigmoid(conv(name="gate", use_bias=True)(box_mean(x, self.box)))
        return conv(name="select")(x + gate * x)


def bin_means(x, bins: int):
    """Averages x [B, H, W, C] over near-equal cells -> [B, bins, bins, C]; cells overlap if H or W < bins."""

    def cells(n):
        weights = np.zeros((bins, n), np.float32)
        for i in range(bins):
            start, stop = i * n // bins, -(-(i + 1) * n // bins)
            weights[i, start:stop] = 1 / (stop - start)
        return weights

    return jnp.einsum("ih,jw,bhwc->bijc", cells(x.shape[1]), cells(x.shape[2]), x).astype(x.dtype)


class PyramidPooling(nn.Module):
    """Averages over 1, 2, 3 and 6 bins per axis, concatenated with the map and projected (Zhao et al. 2017).

    The bins divide the whole input, whatever its size, so the prediction for a pixel depends on the input's extent.
    """

    channels: int
    bins: tuple[int, ...] = (1, 2, 3, 6)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        parts = [x]
        for bins in self.bins:
            reduced = convolution(self.channels // 4, 1, dtype=self.dtype, name=f"bin{bins}")(bin_means(x, bins))
            parts.append(upsample(nn.relu(reduced), x.shape[1:3]))
        y = convolution(self.channels, 1, dtype=self.dtype, name="project")(jnp.concatenate(parts, -1))
        return nn.relu(BatchNorm(train, self.dtype, name="bn")(y))


class FeatureAlignment(nn.Module):
    """{"C2".."C5"} -> the aggregated pyramid P [B, H/4, W/4, channels].

    Attributes:
      channels: D, the number of channels of each level and of the result.
      align: "flow" warps the coarser level along a learned flow before adding it; "none" upsamples it (a plain FPN).
      context: whether to apply pyramid pooling to the coarsest level.
      pool_size: edge, in input pixels, of the box that the selection averages over; 0: the whole input.
      dtype: computation dtype.
    """

    channels: int
    align: str = "none"
    context: bool = False
    pool_size: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, train: bool):
        options = {"dtype": self.dtype}
        norm = partial(BatchNorm, train, self.dtype)
        conv = partial(convolution, self.channels, 3, dtype=self.dtype)
        lateral = {
            name: Selection(self.channels, self.pool_size // STRIDES[name], name=f"selection_{name}", **options)(
                features[name], train
            )
            for name in LEVELS
        }

        level = lateral["C5"]
        if self.context:
            level = PyramidPooling(self.channels, name="context", **options)(level, train)
        levels = [level]
        for name in reversed(LEVELS[:-1]):
            here = lateral[name]
            if self.align == "flow":
                # Initialised with zeros, so that training starts as a plain FPN.
                flow = JoinedConvolution(2, True, self.dtype, nn.initializers.zeros, name=f"flow_{name}")
                coarse = warp(level, flow([here, level]))
            else:
                coarse = upsample(level, here.shape[1:3])
            level = nn.relu(norm(name=f"bn_{name}")(conv(name=f"merge_{name}")(here + coarse)))
            levels.append(level)
        aggregate = JoinedConvolution(self.channels, dtype=self.dtype, name="aggregate")
        return nn.relu(norm(name="bn_aggregate")(aggregate(levels)))
