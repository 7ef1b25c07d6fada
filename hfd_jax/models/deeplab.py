"""DeepLabV3+: atrous spatial pyramid pooling on a ResNet, and a decoder that joins the features of stride 4.

Chen et al. 2018, "Encoder-decoder with atrous separable convolution for semantic image segmentation": output stride 16,
rates 6, 12 and 18, depthwise separable convolutions in the pyramid and the decoder. Left out: dropout, and the batch
normalisation and activation that the authors' code has between a depthwise convolution and its pointwise one (as in
segmentation_models_pytorch, the two form one linear layer).
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from hfd_jax.core.options import option
from hfd_jax.models.base import ResNetBased
from hfd_jax.models.layers import ConvBN, DepthwiseConvolution, classify
from hfd_jax.models.upsampling import upsample


class SeparableConvolution(nn.Module):
    """A 3x3 depthwise convolution followed by a 1x1 convolution."""

    features: int
    dilation: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = DepthwiseConvolution(self.dilation, dtype=self.dtype, name="depthwise")(x)
        return ConvBN(self.features, 1, dtype=self.dtype, name="pointwise")(x, train)


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling: joins a 1x1 convolution, 3x3 convolutions at several rates and the mean."""

    channels: int
    rates: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        options = {"dtype": self.dtype}
        parts = [ConvBN(self.channels, 1, name="point", **options)(x, train)]
        for rate in self.rates:
            parts.append(SeparableConvolution(self.channels, rate, name=f"rate{rate}", **options)(x, train))
        mean = ConvBN(self.channels, 1, name="image", **options)(x.mean((1, 2), keepdims=True), train)
        parts.append(jnp.broadcast_to(mean, parts[0].shape))
        return ConvBN(self.channels, 1, name="project", **options)(jnp.concatenate(parts, -1), train)


class DeepLabV3Plus(ResNetBased):
    """The pyramid has 4 * width channels (published: 256), the low-level features 3 / 4 * width (published: 48).

    Attributes:
      rates: dilations of the pyramid. The edge of its map is a sixteenth of the input's; at a dilation of that size or
        more, a 3x3 convolution sees only its centre. The published rates suit 33 x 33 positions (crops of 513).
    """

    title: ClassVar[str] = "DeepLabV3+"
    tap_strides: ClassVar[dict[str, int]] = {"C2": 4, "C3": 8, "C4": 16, "C5": 16, "A": 4}
    sees_all: ClassVar[bool] = True

    rates: tuple[int, ...] = option(
        (6, 12, 18),
        "dilations of the pyramid; a rate of crop / 16 or more sees only one position",
        rule="integers above 0, none twice",
    )

    @classmethod
    def problems(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().problems(values)
        rates = values["rates"]
        if not rates or not all(isinstance(rate, int) and rate > 0 for rate in rates):
            yield "rates", "expected integers above 0"
        elif len(set(rates)) < len(rates):
            yield "rates", "a rate is named twice"

    @nn.compact
    def __call__(self, x, train: bool = False):
        options = self.options
        features = self.encode(x, train, output_stride=16)
        y = AtrousPyramid(4 * self.width, self.rates, name="pyramid", **options)(features["C5"], train)
        low = ConvBN(max(3 * self.width // 4, 1), 1, name="low", **options)(features["C2"], train)
        y = jnp.concatenate([upsample(y, low.shape[1:3]), low], -1)
        for index in range(2):
            y = SeparableConvolution(4 * self.width, name=f"decoder{index}", **options)(y, train)
        return classify(y, self.classes, x.shape[1:3], self.dtype), {**features, "A": y}
