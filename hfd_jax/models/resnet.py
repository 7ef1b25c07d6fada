"""ResNet encoder with the layout of the standard implementation, so that its published weights can be brought in.

He et al. 2016, "Deep residual learning for image recognition"; in bottlenecks the stride sits in the 3x3 convolution
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
    """Two 3x3 convolutions, or 1x1 - 3x3 - 1x1 with a fourfold widening when `bottleneck`.

    `dilations` are those of the first (strided) 3x3 convolution and of a second one.
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
    """The blocks of a stage, in the scope of the calling module.

    Args:
      x: [B, H, W, C].
      train: of the batch statistics.
      number: of the stage, 1 to 4.
      stride: of the first block.
      dilations: of the first 3x3 convolution, and of all others.
      depth, width, remat: as of `ResNet`.
      name: blocks are called <name><number>_<index>.
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
      width: channels of the first stage (64 is the standard network).
      dtype: of the computation; parameters are float32.
      remat: keep only what goes from block to block for the backward pass and compute the rest again.
      output_stride: 32, or 16 or 8: stages beyond it dilate what follows instead of striding (Chen et al. 2017).
      stages: how many of the four there are; those that are not give no feature.
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
    """The stem's kernel for other input bands.

    A band that one of the old bands stands for takes that band's kernel, every other one the mean over the old bands.
    What the sum over bands then lacks is added to all of them alike, and all are scaled by old / new number of bands:
    the sum over bands is the old one, so that an image whose bands are alike gives the activations it gave.

    Args:
      kernel: [7, 7, old bands, width].
      sources: one per new band: which old band stands for it, or None.

    Returns:
      [7, 7, new bands, width], float32.
    """
    kernel = np.asarray(kernel, np.float64)
    mean = kernel.mean(2)
    fitted = np.stack([mean if source is None else kernel[:, :, source] for source in sources], 2)
    fitted += (mean - fitted.mean(2))[:, :, None]
    return (fitted * (kernel.shape[2] / len(sources))).astype(np.float32)
