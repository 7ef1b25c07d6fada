"""HR-SAR-Net: a network of about 63,000 parameters for high-resolution SAR.

Wang et al. 2020, "HR-SAR-Net: a deep neural network for urban scene segmentation from high-resolution SAR data". Only
the paper's abstract was available; the layers follow the implementation by the authors of MP-ResNet
(github.com/ggsDing/SARSeg). Its convolutions at stride 8 are depthwise, which gives 56,483 parameters with one band and
three classes. Ordinary convolutions give 62,963, which matches the paper's 63 k, so they are used here. This is a
guess, since the paper's number of bands and classes was not available.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.layers import ConvBN, TransposedConvolution

CHANNELS = 16
DILATIONS = (1, 2, 4)


class Triple(nn.Module):
    """Concatenates 3x3 convolutions at three dilations."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        conv = partial(ConvBN, CHANNELS, 3, activation=nn.leaky_relu, dtype=self.dtype)
        return jnp.concatenate([conv(dilation=d, name=f"dilation{d}")(x, train) for d in DILATIONS], -1)


class HRSARNet(SegmentationNetwork):
    """Has a fixed size and no options."""

    title: ClassVar[str] = "HR-SARNet"
    tap_strides: ClassVar[dict[str, int]] = {"C2": 4, "C3": 8, "A": 2}
    stem: ClassVar[tuple[str, ...]] = ("stem", "conv")

    @nn.compact
    def __call__(self, x, train: bool = False):
        options = self.options
        conv = partial(ConvBN, CHANNELS, activation=nn.leaky_relu, **options)
        triple = nn.remat(Triple, static_argnums=(2,)) if self.remat else Triple
        x = conv(5, name="stem")(x.astype(self.dtype), train)
        x = triple(name="triple1", **options)(x, train)
        maps = {}
        for stride in (2, 4, 8):
            x = conv(1, 2, name=f"down{stride}")(x, train)
            x = maps[stride] = triple(name=f"triple{stride}", **options)(x, train)
        for stride in (4, 2):
            x = conv(4, transposed=True, name=f"up{stride}")(x, train)
            x = jnp.concatenate([x, maps[stride]], -1)
        logits = TransposedConvolution(self.classes, 4, use_bias=True, dtype=self.dtype, name="classifier")(x)
        return logits.astype(jnp.float32), {"C2": maps[4], "C3": maps[8], "A": x}

    @nn.nowrap
    def classify(self, params: Mapping[str, Any], feature, shape):
        del shape  # the transposed convolution doubles the size
        classifier = TransposedConvolution(self.classes, 4, use_bias=True, dtype=self.dtype)
        return classifier.apply({"params": params["classifier"]}, feature).astype(jnp.float32)
