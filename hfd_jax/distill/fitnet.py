"""FitNets (Romero et al. 2015, ICLR, arXiv 1412.6550): regresses the teacher's feature from the student's.

    loss = mean over valid positions and channels of ( r(S) - T )^2,   r a 1x1 convolution

The paper uses half the squared distance, summed, and trains in two stages: first the layers up to the feature with this
loss alone, then the whole student with soft targets. Here, as in later comparisons, both are one stage: the loss is
added to the segmentation loss, and the soft targets are `kd`. The weight 10 comes from the code of Yang et al. 2022
(arXiv 2204.06986), which uses the mean above together with `kd`.
"""

from typing import ClassVar

import flax.linen as nn

from hfd_jax.core.losses import masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import Maps, TapDistiller


class FitNet(TapDistiller):
    """Mean squared distance to the teacher's features, including their magnitude."""

    method: ClassVar[str] = "fitnet"
    title: ClassVar[str] = "FitNet"

    weight: float = option(10.0, "weight of the loss; as in Yang et al. 2022", above=0)

    def compare(self, tap: str, maps: Maps, train: bool):
        hint = nn.Conv(maps.target.shape[-1], (1, 1), name=f"regressor_{tap}")(maps.student)
        return masked_mean((hint - maps.target) ** 2, maps.mask[..., None])
