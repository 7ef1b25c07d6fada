"""Structured distillation, pair-wise part (Liu et al. 2019, CVPR, arXiv 1903.04197): similarities between positions.

A node is the mean feature over a cell of the grid, normalised to length 1. With a, the inner products of the nodes
within a sample,

    loss = mean over samples and pairs of valid nodes of ( a_S - a_T )^2

The authors' code takes maxima over cells of half the map and uses weight 1. The code of Yang et al. 2022 (arXiv
2204.06986) takes maxima over cells of 2 x 2 positions and uses weight 10. Here the nodes are means and the weight is
10. A map of at most `nodes` positions along each axis is not pooled at all: its positions are the nodes. That is the
case for tiles of 64 pixels and a feature at stride 4 or coarser; HFD-Net's A, at stride 1, is pooled over 4 x 4
positions there. The pixel-wise part is `kd`; the adversarial part is left out.
"""

from typing import ClassVar

from hfd_jax.core.losses import masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import Maps, TapDistiller
from hfd_jax.distill.relations import nodes, similarities, unit


class SKD(TapDistiller):
    """Compares inner products, so the two features may differ in the number and meaning of their channels.

    Attributes:
      nodes: maximum number of nodes along each axis.
    """

    method: ClassVar[str] = "skd"
    title: ClassVar[str] = "SKD"

    weight: float = option(
        10.0, "weight of the loss; as in Yang et al. 2022, for nodes of few positions; the authors' own: 1", above=0
    )
    nodes: int = option(
        16, "maximum number of nodes along each axis; a node is the mean over a cell of positions", above=0
    )

    def compare(self, tap: str, maps: Maps, train: bool):
        (x, seen), (target, _) = (nodes(y, maps.mask, self.nodes) for y in (maps.student, maps.target))
        x, target = unit(x), unit(target)
        difference = similarities(x, x) - similarities(target, target)
        return masked_mean(difference**2, seen[:, :, None] & seen[:, None, :])
