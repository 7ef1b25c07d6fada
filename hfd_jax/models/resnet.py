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
    """Two 3x3 convolutions, or 1x1 - 3x3 - 1x1 with a fourfold widening when `bottleneck`."""

    features: int
    stride: int
    bottleneck: bool
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool):
        conv = partial(convolution, dtype=self.dtype)
        norm = partial(BatchNorm, train, self.dtype, self.axis_name)
        out = self.features * (4 if self.bottleneck else 1)
        if self.bottleneck:
            y = nn.relu(norm(name="bn1")(conv(self.features, 1, name="conv1")(x)))
            y = nn.relu(norm(name="bn2")(conv(self.features, 3, self.stride, name="conv2")(y)))
            y = norm(name="bn3")(conv(out, 1, name="conv3")(y))
        else:
            y = nn.relu(norm(name="bn1")(conv(out, 3, self.stride, name="conv1")(x)))
            y = norm(name="bn2")(conv(out, 3, name="conv2")(y))
        if x.shape != y.shape:
            x = norm(name="downsample_bn")(conv(out, 1, self.stride, name="downsample_conv")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Encoder: [B, H, W, bands] -> {"C2": [B, H/4, W/4, .], "C3": H/8, "C4": H/16, "C5": H/32}.

    Attributes:
      depth: 18, 34, 50 or 101.
      width: channels of the first stage (64 is the standard network).
      dtype: of the computation; parameters are float32.
      axis_name: pmap axis over which the batch statistics are averaged; None under jit.
      remat: keep only what goes from block to block for the backward pass and compute the rest again.
    """

    depth: int = 18
    width: int = 64
    dtype: Any = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x, train: bool):
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        x = convolution(self.width, 7, 2, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(train, self.dtype, self.axis_name, name="bn1")(x))
        x = max_pool(x)
        features = {}
        for stage, (name, blocks) in enumerate(zip(STAGES, DEPTHS[self.depth], strict=True)):
            for index in range(blocks):
                x = block(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    bottleneck=self.depth >= 50,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"layer{stage + 1}_{index}",
                )(x, train)
            features[name] = x
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
