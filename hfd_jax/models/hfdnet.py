"""HFD-Net: the default architecture of teacher and student."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import flax.linen as nn

from hfd_jax.core.options import option
from hfd_jax.models.alignment import ALIGNMENTS, FeatureAlignment
from hfd_jax.models.base import ResNetBased
from hfd_jax.models.decoder import DetailPath, FineDecoder
from hfd_jax.models.layers import classify
from hfd_jax.models.resnet import STRIDES


class HFDNet(ResNetBased):
    """ResNet encoder, feature alignment, fine decoder and classifier.

    The features are the encoder's stages "C2" to "C5", the aligned pyramid "P" and the classifier's input "A". Without
    detail channels, "A" is the aligned pyramid itself; this is the network of version 0.1.
    """

    title: ClassVar[str] = "HFD-Net"
    tap_strides: ClassVar[dict[str, int]] = {**STRIDES, "P": 4, "A": 1}

    stride: int = option(
        1, "stride of the classifier's input; logits are upsampled from it", choices=(1, 2, 4), before=4
    )
    detail_channels: tuple[int, ...] = option(
        (8, 16, 64),
        "channels of the detail path at the strides 1, 2 and 4; (): no detail path, which needs stride 4",
        above=0,
        rule="three integers, or ()",
        before=(),
    )
    align: str = option("none", "feature alignment; none: a plain feature pyramid", choices=ALIGNMENTS)
    align_channels: int = option(
        0, "channels of the alignment module; 0: 2 * width (depth 18, 34) or 4 * width (depth 50, 101)", at_least=0
    )
    context: bool = option(False, "apply pyramid pooling to the coarsest level")
    pool_size: int = 0

    @classmethod
    def problems(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().problems(values)
        detail = values["detail_channels"]
        if len(detail) not in (0, 3) or not all(isinstance(count, int) for count in detail):
            yield "detail_channels", f"{tuple(detail)} given; expected three integers, or ()"
        elif not detail and values["stride"] != 4:
            yield "detail_channels", f"() needs model.stride=4; it is {values['stride']}"

    @classmethod
    def strides(cls, values: Mapping[str, Any]) -> dict[str, int]:
        return {**cls.tap_strides, "A": values["stride"]}

    @property
    def stems(self) -> tuple[tuple[str, ...], ...]:
        detail = ("detail", f"stride{self.stride}_0", "conv")
        return (self.stem, detail) if self.detail_channels else (self.stem,)

    @property
    def sees_all(self) -> bool:
        return self.context

    @nn.compact
    def __call__(self, x, train: bool = False):
        features = self.encode(x, train)
        channels = self.align_channels or self.width * (4 if self.depth >= 50 else 2)
        align = FeatureAlignment(channels, self.align, self.context, self.pool_size, name="alignment", **self.options)
        pyramid = finest = align(features, train)
        if self.detail_channels:
            path = DetailPath(tuple(self.detail_channels), self.stride, name="detail", **self.options)
            detail = path(x.astype(self.dtype), train)
            finest = FineDecoder(name="decoder", **self.options)(pyramid, detail, train)
        logits = classify(finest, self.classes, x.shape[1:3], self.dtype)
        return logits, {**features, "P": pyramid, "A": finest}
