"""Structured distillation, pair-wise part (Liu et al. 2019, CVPR, arXiv 1903.04197): how alike positions are.

Nodes are means over cells of the feature's grid, scaled to length 1; a = their inner products within a sample;

    loss = mean over samples and pairs of valid nodes of ( a_S - a_T )^2

The authors' code takes maxima over cells of half the map and weighs 1; the code of Yang et al. 2022 (arXiv 2204.06986)
takes them over cells of 2 x 2 positions and weighs 10, as here, where they are means. The pixel-wise part is `kd`; the
adversarial one is left out.
"""

from typing import ClassVar

from hfd_jax.core.losses import masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import Maps, TapDistiller
from hfd_jax.distill.relations import nodes, similarities, unit


class SKD(TapDistiller):
    """Channels may differ in number and meaning: only inner products are compared.

    Attributes:
      nodes: at most so many along either axis.
    """

    method: ClassVar[str] = "skd"
    title: ClassVar[str] = "SKD"

    weight: float = option(10.0, "weight of the loss; as published for nodes of few positions", above=0)
    nodes: int = option(16, "along either axis, at most; a node is the mean of a cell of positions", above=0)

    def compare(self, tap: str, maps: Maps, train: bool):
        (x, seen), (target, _) = (nodes(y, maps.mask, self.nodes) for y in (maps.student, maps.target))
        x, target = unit(x), unit(target)
        difference = similarities(x, x) - similarities(target, target)
        return masked_mean(difference**2, seen[:, :, None] & seen[:, None, :])
