"""PSPNet: pyramid pooling on a dilated ResNet.

Zhao et al. 2017, "Pyramid scene parsing network": the encoder's last two stages are dilated to stride 8, and means over
1, 2, 3 and 6 bins per axis are concatenated with its output, followed by a 3x3 convolution. The encoder has the
standard stem (published: three 3x3 convolutions). Left out: dropout, the auxiliary classifier.
"""

from typing import ClassVar

import flax.linen as nn

from hfd_jax.models.alignment import bin_means
from hfd_jax.models.base import ResNetBased
from hfd_jax.models.layers import BatchNorm, ConvBN, JoinedConvolution, classify

BINS = (1, 2, 3, 6)


class PSPNet(ResNetBased):
    """The published network has depth 50 and width 64. Smaller maps have at most one bin per position."""

    title: ClassVar[str] = "PSPNet"
    tap_strides: ClassVar[dict[str, int]] = {"C2": 4, "C3": 8, "C4": 8, "C5": 8, "A": 8}
    sees_all: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        options = self.options
        features = self.encode(x, train, output_stride=8)
        last = features["C5"]
        channels = last.shape[-1] // 4
        maps = [last]
        for bins in BINS:
            means = bin_means(last, min(bins, *last.shape[1:3]))
            maps.append(ConvBN(channels, 1, name=f"bins{bins}", **options)(means, train))
        joined = JoinedConvolution(channels, dtype=self.dtype, name="project")(maps)
        joined = nn.relu(BatchNorm(train, name="bn", **options)(joined))
        return classify(joined, self.classes, x.shape[1:3], self.dtype), {**features, "A": joined}
