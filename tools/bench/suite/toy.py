"""A network that compiles in a second, with which `--tiny` tries the suite itself."""

from typing import ClassVar

import flax.linen as nn

from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.layers import ConvBN, classify

NAME = "toy"


class Toy(SegmentationNetwork):
    """Two convolutions and a classifier."""

    title: ClassVar[str] = "toy"
    tap_strides: ClassVar[dict[str, int]] = {"C2": 4, "A": 4}
    stem: ClassVar[tuple[str, ...]] = ("stem", "conv")

    @nn.compact
    def __call__(self, x, train: bool = False):
        stem = ConvBN(8, 3, 4, name="stem", **self.options)(x.astype(self.dtype), train)
        head = ConvBN(8, 1, name="head", **self.options)(stem, train)
        return classify(head, self.classes, x.shape[1:3], self.dtype), {"C2": stem, "A": head}
