"""HFD-Net: the default architecture of teacher and student."""

from typing import ClassVar

import flax.linen as nn

from hfd_jax.core.options import option
from hfd_jax.models.alignment import ALIGNMENTS, FeatureAlignment
from hfd_jax.models.base import ResNetBased
from hfd_jax.models.layers import classify
from hfd_jax.models.resnet import STRIDES

TAP_STRIDES = {**STRIDES, "A": 4}


class HFDNet(ResNetBased):
    """ResNet encoder, feature alignment and classifier, with the features "C2" to "C5" and "A".

    Attributes:
      align, context, pool_size: see `FeatureAlignment`.
      align_channels: channels D of the alignment; 0 means 2 * width for depth 18 and 34, 4 * width for 50 and 101.
    """

    title: ClassVar[str] = "HFD-Net"
    tap_strides: ClassVar[dict[str, int]] = TAP_STRIDES

    align: str = option("flow", "feature alignment; none: a plain feature pyramid", choices=ALIGNMENTS)
    align_channels: int = option(
        0, "channels of the alignment module; 0: 2 * width (depth 18, 34) or 4 * width (depth 50, 101)", at_least=0
    )
    context: bool = option(False, "apply pyramid pooling to the coarsest level")
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
