"""The fine levels of HFD-Net: a detail path beside the encoder, and a decoder that continues the pyramid to stride 1.

The stem of a ResNet halves the image and takes maxima before anything has averaged the speckle. The detail path does
what multi-looking does: it averages, with learned filters in between. Both keep their few channels whatever the width
of the encoder, because they run at the resolution of the image. See docs/architectures.md for what they bring.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from hfd_jax.models.layers import ConvBN, convolution, mean_pool_2x2
from hfd_jax.models.upsampling import upsample


class DetailPath(nn.Module):
    """Image [B, H, W, bands] -> {stride: [B, H / stride, W / stride, channels]} for the strides of the fine levels.

    Two 3x3 convolutions at the finest level and one at each other, with means over 2 x 2 positions in between. A finest
    level of stride 2 or 4 begins with means of the image.

    Attributes:
      channels: number of channels at the strides 1, 2 and 4.
      stride: that of the finest level, 1, 2 or 4.
      dtype: computation dtype.
    """

    channels: tuple[int, int, int]
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        width_at, maps = dict(zip((1, 2, 4), self.channels, strict=True)), {}
        for stride in (1, 2, 4):
            x = mean_pool_2x2(x) if stride > 1 else x
            if stride >= self.stride:
                for index in range(1 if maps else 2):
                    name = f"stride{stride}_{index}"
                    x = ConvBN(width_at[stride], 3, dtype=self.dtype, name=name)(x, train)
                maps[stride] = x
        return maps


class FineDecoder(nn.Module):
    """Pyramid [B, H/4, W/4, C] and detail maps -> [B, H / stride, W / stride, channels] at the finest detail level.

    At each level the coarser map is projected to the level's channels, upsampled, added to the detail map and convolved
    (3x3). The projection is linear and therefore applied before upsampling, where it costs a quarter.

    Attributes:
      dtype: computation dtype.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pyramid, detail, train: bool):
        x = pyramid
        for stride in sorted(detail, reverse=True):
            here = detail[stride]
            projected = convolution(here.shape[-1], 1, dtype=self.dtype, name=f"project{stride}")(x)
            if projected.shape != here.shape:
                projected = upsample(projected, here.shape[1:3])
            x = ConvBN(here.shape[-1], 3, dtype=self.dtype, name=f"merge{stride}")(here + projected, train)
        return x
