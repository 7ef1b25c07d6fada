"""ResNet encoder in the layout of the standard implementation, so that it can load published weights.

He et al. 2016, "Deep residual learning for image recognition". In bottlenecks the 3x3 convolution carries the stride
(the variant known as v1.5).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from hfd_jax.models.layers import BatchNorm, convolution, max_pool

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STAGES = ("C2", "C3", "C4", "C5")
STRIDES = {"C2": 4, "C3": 8, "C4": 16, "C5": 32}


class Block(nn.Module):
    """Residual block of two 3x3 convolutions, or of 1x1 - 3x3 - 1x1 with fourfold expansion if `bottleneck`.

    `dilations` are those of the first (strided) and the second 3x3 convolution; a bottleneck uses only the first.
    """

    features: int
    stride: int
    bottleneck: bool
    dilations: tuple[int, int] = (1, 1)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        conv = partial(convolution, dtype=self.dtype)
        norm = partial(BatchNorm, train, self.dtype)
        out = self.features * (4 if self.bottleneck else 1)
        if self.bottleneck:
            y = nn.relu(norm(name="bn1")(conv(self.features, 1, name="conv1")(x)))
            y = nn.relu(norm(name="bn2")(conv(self.features, 3, self.stride, self.dilations[0], name="conv2")(y)))
            y = norm(name="bn3")(conv(out, 1, name="conv3")(y))
        else:
            y = nn.relu(norm(name="bn1")(conv(out, 3, self.stride, self.dilations[0], name="conv1")(x)))
            y = norm(name="bn2")(conv(out, 3, 1, self.dilations[1], name="conv2")(y))
        if x.shape != y.shape:
            x = norm(name="downsample_bn")(conv(out, 1, self.stride, name="downsample_conv")(x))
        return nn.relu(x + y)


def run_stage(
    x,
    train: bool,
    number: int,
    stride: int,
    dilations: tuple[int, int] = (1, 1),
    *,
    depth: int,
    width: int,
    name: str = "layer",
    remat: bool = False,
    **options,
):
    """Applies the blocks of a stage; they become submodules of the calling module.

    Args:
      x: [B, H, W, C].
      train: whether to use the statistics of the batch.
      number: number of the stage, 1 to 4.
      stride: stride of the first block.
      dilations: dilations of the first 3x3 convolution and of all others.
      depth, width, remat: see `ResNet`.
      name: prefix of the blocks, which are named <name><number>_<index>.
      **options: dtype.
    """
    block = nn.remat(Block, static_argnums=(2,)) if remat else Block
    for index in range(DEPTHS[depth][number - 1]):
        x = block(
            features=width * 2 ** (number - 1),
            stride=stride if index == 0 else 1,
            bottleneck=depth >= 50,
            dilations=dilations if index == 0 else dilations[1:] * 2,
            name=f"{name}{number}_{index}",
            **options,
        )(x, train)
    return x


class ResNet(nn.Module):
    """Encoder: [B, H, W, bands] -> {"C2": [B, H/4, W/4, .], "C3": H/8, "C4": H/16, "C5": H/32}.

    Attributes:
      depth: 18, 34, 50 or 101.
      width: channels of the first stage; 64 in the standard network.
      dtype: computation dtype; parameters are float32.
      remat: whether to store only the inputs of the blocks for the backward pass and recompute the rest.
      output_stride: 32, 16 or 8; stages beyond it use dilation instead of striding (Chen et al. 2017).
      stages: number of stages, 1 to 4; later stages are left out and give no feature.
    """

    depth: int = 18
    width: int = 64
    dtype: Any = jnp.float32
    remat: bool = False
    output_stride: int = 32
    stages: int = 4

    @nn.compact
    def __call__(self, x, train: bool):
        options = {"dtype": self.dtype}
        x = convolution(self.width, 7, 2, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(train, name="bn1", **options)(x))
        x = max_pool(x)
        options |= {"depth": self.depth, "width": self.width, "remat": self.remat}
        features, before = {}, 1
        for number, name in enumerate(STAGES[: self.stages], 1):
            dilation = max(STRIDES[name] // self.output_stride, 1)
            stride = 2 if number > 1 and dilation == 1 else 1
            features[name] = x = run_stage(x, train, number, stride, (before, dilation), **options)
            before = dilation
        return features


def fit_stem(kernel: Any, sources: Sequence[int | None]) -> np.ndarray:
    """Converts the stem's kernel to other input bands.

    A new band with a source takes the kernel of that old band; any other takes the mean over the old bands. All new
    bands are then shifted by the same amount, so that their mean is the mean over the old bands, and scaled by the
    ratio of old to new number of bands. This preserves the sum over bands: an image with equal bands gives the same
    activations as before.

    Args:
      kernel: [7, 7, old bands, width].
      sources: for each new band, the index of the old band that it takes its kernel from, or None.

    Returns:
      [7, 7, new bands, width] float32.
    """
    kernel = np.asarray(kernel, np.float64)
    mean = kernel.mean(2)
    fitted = np.stack([mean if source is None else kernel[:, :, source] for source in sources], 2)
    fitted += (mean - fitted.mean(2))[:, :, None]
    return (fitted * (kernel.shape[2] / len(sources))).astype(np.float32)
