"""Fully convolutional network on a dilated ResNet.

Long et al. 2015, "Fully convolutional networks for semantic segmentation", in the form in which it is a baseline today
(and torchvision's `fcn_resnet50`): the encoder's last two stages dilated to stride 8, one 3x3 convolution to a quarter
of the channels, the classifier. Left out: dropout, the auxiliary classifier.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from hfd_jax.models.layers import ConvBN, classify
from hfd_jax.models.resnet import ResNet


class FCN(nn.Module):
    """Interface as of `Segmenter`; published with depth 50 and width 64."""

    tap_strides: ClassVar[dict[str, int]] = {"C2": 4, "C3": 8, "C4": 8, "C5": 8, "A": 8}
    stem: ClassVar[tuple[str, ...]] = ("encoder", "conv1")
    sees_all: ClassVar[bool] = False

    classes: int
    depth: int = 18
    width: int = 64
    dtype: Any = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        options = {"dtype": self.dtype, "axis_name": self.axis_name}
        encoder = ResNet(self.depth, self.width, remat=self.remat, output_stride=8, name="encoder", **options)
        features = encoder(x.astype(self.dtype), train)
        head = ConvBN(features["C5"].shape[-1] // 4, 3, name="head", **options)(features["C5"], train)
        return classify(head, self.classes, x.shape[1:3], self.dtype), {**features, "A": head}
