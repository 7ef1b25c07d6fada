"""Base classes of the architectures: each can be trained on its own, serve as a teacher, or be distilled."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from hfd_jax.core import options
from hfd_jax.core.options import option
from hfd_jax.models.layers import convolution
from hfd_jax.models.resnet import DEPTHS, STAGES, ResNet
from hfd_jax.models.upsampling import upsample

TAPS = (*STAGES, "P", "A")  # the encoder's features from fine to coarse, the pyramid, and the classifier's input
STRIDE = 32  # input height and width must be multiples of it


class SegmentationNetwork(nn.Module):
    """x [B, H, W, bands] -> (logits [B, H, W, classes] float32, features {tap: [B, H / stride, W / stride, .]}).

    H and W must be multiples of STRIDE. A subclass sets

      title: its name in tables.
      tap_strides: tap -> stride, with default options (`strides` gives them for others).
      stem: path of a convolution that reads the bands; if there are several, `stems` gives all.
      sees_all: whether the prediction for a pixel depends on the whole input, not only on the pixel's neighbourhood.

    Attributes:
      classes: number of classes.
      dtype: computation dtype; parameters, batch statistics and logits are float32.
      remat: whether to recompute blocks in the backward pass instead of storing them: less memory, more computation.
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
        """Yields (option, problem) for each invalid value in config.model; subclasses may add rules."""
        yield from options.problems(cls, values)

    @classmethod
    def strides(cls, values: Mapping[str, Any]) -> dict[str, int]:
        """Maps each tap to its stride, for the options in config.model."""
        del values
        return cls.tap_strides

    @nn.nowrap
    def classify(self, params: Mapping[str, Any], feature, shape):
        """Repeats the last layers: feature "A" [B, h, w, C] -> logits [B, *shape, classes] float32.

        A pure function of the network's parameters, for gradients with respect to the feature.
        """
        classifier = convolution(self.classes, 1, dtype=self.dtype, use_bias=True)
        return upsample(classifier.apply({"params": params["classifier"]}, feature).astype(jnp.float32), shape)

    @property
    def stems(self) -> tuple[tuple[str, ...], ...]:
        """The paths of all convolutions that read the bands."""
        return (self.stem,)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that most layers share."""
        return {"dtype": self.dtype}


class ResNetBased(SegmentationNetwork):
    """A network with a ResNet encoder, which can start from published weights.

    Attributes:
      depth, width: see `ResNet`.
    """

    stem: ClassVar[tuple[str, ...]] = ("encoder", "conv1")

    depth: int = option(18, "number of layers of the ResNet encoder", choices=tuple(DEPTHS))
    width: int = option(64, "channels of the first stage; 64 is the standard (published) size", above=0)

    def encode(self, x, train: bool, **layout: Any) -> dict[str, Any]:
        """Applies a `ResNet` with the options `layout` and returns its features. Call it from a compact method."""
        encoder = ResNet(self.depth, self.width, remat=self.remat, name="encoder", **layout, **self.options)
        return encoder(x.astype(self.dtype), train)
