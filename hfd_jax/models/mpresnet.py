"""MP-ResNet: a ResNet that splits into parallel paths at strides 8, 16 and 32, and a decoder that sums their features.

Ding et al. 2022, "MP-ResNet: multipath residual network for the semantic segmentation of high-resolution PolSAR
images", following the authors' code (github.com/ggsDing/SARSeg). Left out: the auxiliary classifier, and biases that a
batch normalisation cancels.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from hfd_jax.models.base import ResNetBased
from hfd_jax.models.layers import ConvBN, classify
from hfd_jax.models.resnet import run_stage


class Upsampling(nn.Module):
    """1x1 convolution to a quarter of the channels, transposed 3x3 convolution of stride 2, 1x1 convolution back."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        options, channels = {"dtype": self.dtype}, x.shape[-1]
        x = ConvBN(channels // 4, 1, name="reduce", **options)(x, train)
        x = ConvBN(channels // 4, 3, transposed=True, name="double", **options)(x, train)
        return ConvBN(channels, 1, name="expand", **options)(x, train)


class MPResNet(ResNetBased):
    """The published network has depth 34 and width 64. The taps C4 and C5 belong to the coarsest path."""

    title: ClassVar[str] = "MP-ResNet"
    tap_strides: ClassVar[dict[str, int]] = {"C2": 4, "C3": 8, "C4": 16, "C5": 32, "A": 8}

    @nn.compact
    def __call__(self, x, train: bool = False):
        options = self.options
        size = {"depth": self.depth, "width": self.width, "remat": self.remat}
        features = self.encode(x, train, stages=2)

        def stage(x, number, stride, path):
            return run_stage(x, train, number, stride, name=path, **size, **options)

        fine = stage(stage(features["C3"], 3, 1, "fine"), 4, 1, "fine")
        features["C4"] = stage(features["C3"], 3, 2, "coarse")
        middle = stage(features["C4"], 4, 1, "middle")
        features["C5"] = stage(features["C4"], 4, 2, "coarse")
        y = Upsampling(name="decoder5", **options)(features["C5"], train) + middle
        y = Upsampling(name="decoder4", **options)(y, train) + fine
        y = ConvBN(y.shape[-1] // 4, 1, name="head", **options)(y, train)
        return classify(y, self.classes, x.shape[1:3], self.dtype), {**features, "A": y}
