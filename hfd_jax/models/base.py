"""What all architectures have in common, so that each can be trained alone, teach, or be taught."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from hfd_jax.core import options
from hfd_jax.core.options import option
from hfd_jax.models.resnet import DEPTHS, ResNet


class SegmentationNetwork(nn.Module):
    """x [B, H, W, bands] -> (logits [B, H, W, classes] float32, features {tap: [B, H / stride, W / stride, .]}).

    H and W are multiples of 32. A subclass says

      title: its name in tables.
      tap_strides: its taps and their strides.
      stem: where the convolution lies that sees the bands.
      sees_all: whether what is said of a pixel depends on all of the input instead of what is around the pixel.

    Attributes:
      classes: number of classes.
      dtype: of the computation; parameters, batch statistics and logits are float32.
      remat: compute blocks again in the backward pass instead of keeping them: less memory, more computation.
    """

    title: ClassVar[str]
    tap_strides: ClassVar[dict[str, int]]
    stem: ClassVar[tuple[str, ...]]
    sees_all: ClassVar[bool] = False

    classes: int
    dtype: Any = jnp.float32
    remat: bool = False

    @classmethod
    def problems(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """(option, what is wrong) of a config.model; a subclass adds rules that concern several options."""
        yield from options.problems(cls, values)

    @property
    def options(self) -> dict[str, Any]:
        """What most layers are told."""
        return {"dtype": self.dtype}


class ResNetBased(SegmentationNetwork):
    """A network with a ResNet encoder, which published weights may be brought into.

    Attributes:
      depth, width: of the encoder.
    """

    stem: ClassVar[tuple[str, ...]] = ("encoder", "conv1")

    depth: int = option(18, "of the ResNet encoder", choices=tuple(DEPTHS))
    width: int = option(64, "channels of the first stage; 64 is the standard (published) size", above=0)

    def encode(self, x, train: bool, **layout: Any) -> dict[str, Any]:
        """The encoder's stages, laid out as said (`ResNet`); to be called in a compact method."""
        encoder = ResNet(self.depth, self.width, remat=self.remat, name="encoder", **layout, **self.options)
        return encoder(x.astype(self.dtype), train)
