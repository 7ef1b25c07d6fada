"""The architecture that teacher and student share: encoder, alignment, classifier."""

from typing import ClassVar

import flax.linen as nn

from hfd_jax.core.options import option
from hfd_jax.models.alignment import ALIGNMENTS, FeatureAlignment
from hfd_jax.models.base import ResNetBased
from hfd_jax.models.layers import classify
from hfd_jax.models.resnet import STAGES, STRIDES

TAP_STRIDES = {**STRIDES, "A": 4}
TAPS = (*STAGES, "A")
STRIDE = 32  # input height and width must be multiples of it


class Segmenter(ResNetBased):
    """The network of HFD-Net: encoder, feature alignment, classifier; features "C2" .. "C5" and "A".

    Attributes:
      align, context, pool_size: of the alignment module.
      align_channels: its channels D; 0 means 2 * width for depth 18 and 34, 4 * width for 50 and 101.
    """

    title: ClassVar[str] = "HFD-Net"
    tap_strides: ClassVar[dict[str, int]] = TAP_STRIDES

    align: str = option("flow", "feature alignment; none is a plain feature pyramid", choices=ALIGNMENTS)
    align_channels: int = option(0, "of the alignment module; 0: 2 * width (depth 18, 34) or 4 * width", at_least=0)
    context: bool = option(False, "pyramid pooling on the coarsest level")
    pool_size: int = 0

    @property
    def sees_all(self) -> bool:
        return self.context

    @nn.compact
    def __call__(self, x, train: bool = False):
        channels = self.align_channels or self.width * (4 if self.depth >= 50 else 2)
        features = self.encode(x, train)
        align = FeatureAlignment(channels, self.align, self.context, self.pool_size, name="alignment", **self.options)
        aligned = align(features, train)
        return classify(aligned, self.classes, x.shape[1:3], self.dtype), {**features, "A": aligned}
