"""Fully convolutional network on a dilated ResNet.

Long et al. 2015, "Fully convolutional networks for semantic segmentation", in the form commonly used as a baseline
today (as in torchvision's `fcn_resnet50`): the encoder's last two stages are dilated to stride 8, followed by a 3x3
convolution to a quarter of the channels and the classifier. Left out: dropout, the auxiliary classifier.
"""

from typing import ClassVar

import flax.linen as nn

from hfd_jax.models.base import ResNetBased
from hfd_jax.models.layers import ConvBN, classify


class FCN(ResNetBased):
    """The published network has depth 50 and width 64."""

    title: ClassVar[str] = "FCN"
    tap_strides: ClassVar[dict[str, int]] = {"C2": 4, "C3": 8, "C4": 8, "C5": 8, "A": 8}

    @nn.compact
    def __call__(self, x, train: bool = False):
        options = self.options
        features = self.encode(x, train, output_stride=8)
        head = ConvBN(features["C5"].shape[-1] // 4, 3, name="head", **options)(features["C5"], train)
        return classify(head, self.classes, x.shape[1:3], self.dtype), {**features, "A": head}
