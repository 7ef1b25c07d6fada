"""U-Net: an encoder of pairs of 3x3 convolutions, and a decoder that concatenates its features level by level.

Ronneberger et al. 2015, "U-Net: convolutional networks for biomedical image segmentation", with batch normalisation and
zero padding, as commonly used. The published network has neither, and its maps shrink.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from hfd_jax.core.options import option
from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.layers import ConvBN, TransposedConvolution, classify, max_pool_2x2

LEVELS = 5
TAPS = {2: "C2", 3: "C3", 4: "C4"}


class Pair(nn.Module):
    """Two 3x3 convolutions."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        for index in range(2):
            x = ConvBN(self.features, 3, dtype=self.dtype, name=f"{index}")(x, train)
        return x


class UNet(SegmentationNetwork):
    """Has `width` channels at full resolution (published: 64) and doubles them at each halving."""

    title: ClassVar[str] = "U-Net"
    tap_strides: ClassVar[dict[str, int]] = {"C2": 4, "C3": 8, "C4": 16, "A": 1}
    stem: ClassVar[tuple[str, ...]] = ("down0", "0", "conv")

    width: int = option(64, "channels of the first stage; 64 is the standard (published) size", above=0)

    @nn.compact
    def __call__(self, x, train: bool = False):
        options = self.options
        pair = nn.remat(Pair, static_argnums=(2,)) if self.remat else Pair
        shape, x, maps = x.shape[1:3], x.astype(self.dtype), []
        for level in range(LEVELS):
            x = pair(self.width * 2**level, name=f"down{level}", **options)(max_pool_2x2(x) if level else x, train)
            maps.append(x)
        for level in reversed(range(LEVELS - 1)):
            channels = self.width * 2**level
            up = TransposedConvolution(channels, 2, use_bias=True, dtype=self.dtype, name=f"upsample{level}")(x)
            x = pair(channels, name=f"up{level}", **options)(jnp.concatenate([maps[level], up], -1), train)
        features = {tap: maps[level] for level, tap in TAPS.items()}
        return classify(x, self.classes, shape, self.dtype), {**features, "A": x}
