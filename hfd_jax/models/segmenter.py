"""The architecture that teacher and student share: encoder, alignment, classifier."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from hfd_jax.models.alignment import FeatureAlignment
from hfd_jax.models.layers import classify
from hfd_jax.models.resnet import STAGES, STRIDES, ResNet

TAP_STRIDES = {**STRIDES, "A": 4}
TAPS = (*STAGES, "A")
STRIDE = 32  # input height and width must be multiples of it


class Segmenter(nn.Module):
    """x [B, H, W, bands] -> (logits [B, H, W, classes] float32, features {"C2".."C5", "A"}).

    Other architectures (`architectures.py`) have the same interface: features {tap: [B, H / stride, W / stride, .]}, of
    which `tap_strides` tells the taps and strides, `stem`, where the convolution that sees the bands lies, and
    `sees_all`, whether what is said of a pixel depends on all of the input instead of what is around the pixel.

    Attributes:
      classes: number of classes.
      depth, width: of the ResNet encoder.
      align, context, pool_size: of the alignment module.
      align_channels: its channels D; 0 means 2 * width for depth 18 and 34, 4 * width for 50 and 101.
      dtype: of the computation; parameters, batch statistics and logits are float32.
      axis_name: pmap axis of the batch statistics; None under jit.
      remat: less memory in training, more computation (`ResNet`).
    """

    tap_strides: ClassVar[dict[str, int]] = TAP_STRIDES
    stem: ClassVar[tuple[str, ...]] = ("encoder", "conv1")

    classes: int
    depth: int = 18
    width: int = 64
    align: str = "flow"
    align_channels: int = 0
    context: bool = False
    pool_size: int = 0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @property
    def sees_all(self) -> bool:
        return self.context

    @nn.compact
    def __call__(self, x, train: bool = False):
        channels = self.align_channels or self.width * (4 if self.depth >= 50 else 2)
        options = {"dtype": self.dtype, "axis_name": self.axis_name}
        features = ResNet(self.depth, self.width, remat=self.remat, name="encoder", **options)(
            x.astype(self.dtype), train
        )
        align = FeatureAlignment(channels, self.align, self.context, self.pool_size, name="alignment", **options)
        aligned = align(features, train)
        return classify(aligned, self.classes, x.shape[1:3], self.dtype), {**features, "A": aligned}
