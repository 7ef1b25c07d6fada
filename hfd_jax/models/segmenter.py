"""The architecture that teacher and student share: encoder, alignment, classifier."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from hfd_jax.models.alignment import FeatureAlignment
from hfd_jax.models.layers import convolution, upsample
from hfd_jax.models.resnet import STAGES, STRIDES, ResNet

TAP_STRIDES = {**STRIDES, "A": 4}
TAPS = (*STAGES, "A")
STRIDE = 32  # input height and width must be multiples of it


class Segmenter(nn.Module):
    """x [B, H, W, bands] -> (logits [B, H, W, classes] float32, features {"C2".."C5", "A"}).

    Attributes:
      classes: number of classes.
      depth, width: of the ResNet encoder.
      align, context, pool_size: of the alignment module.
      align_channels: its channels D; 0 means 2 * width for depth 18 and 34, 4 * width for 50 and 101.
      dtype: of the computation; parameters, batch statistics and logits are float32.
      axis_name: pmap axis of the batch statistics; None under jit.
      remat: less memory in training, more computation (`ResNet`).
    """

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

    @nn.compact
    def __call__(self, x, train: bool = False):
        channels = self.align_channels or self.width * (4 if self.depth >= 50 else 2)
        options = {"dtype": self.dtype, "axis_name": self.axis_name}
        features = ResNet(self.depth, self.width, remat=self.remat, name="encoder", **options)(
            x.astype(self.dtype), train
        )
        align = FeatureAlignment(channels, self.align, self.context, self.pool_size, name="alignment", **options)
        aligned = align(features, train)
        logits = convolution(self.classes, 1, dtype=self.dtype, use_bias=True, name="classifier")(aligned)
        return upsample(logits.astype(jnp.float32), x.shape[1:3]), {**features, "A": aligned}
