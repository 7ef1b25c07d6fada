"""Intra-class feature variation distillation (Wang et al. 2020, ECCV): how much positions vary within their class.

    M(p) = cosine( f(p), mean of f over the positions of p's class in the same image )
    loss = mean over labelled positions of ( M_S - M_T )^2

The classes come from the labels, so unlabelled pairs contribute nothing. The weight 20 is that of the code of Yang et
al. 2022 (arXiv 2204.06986). The authors' own code uses 200, but its mean also counts unlabelled positions, which add 0
to the sum; with 200 here, students were worse than without distillation. The authors add pixel-wise distillation, which
is `kd` here, and an adversarial loss, which is left out.
"""

from typing import ClassVar

import jax.numpy as jnp

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.losses import masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import Maps, TapDistiller
from hfd_jax.distill.relations import class_means, unit


def variation(x, label, classes: int):
    """Cosine of x [B, N, C] with the mean of its class -> [B, N]; arbitrary where label [B, N] is IGNORE_LABEL."""
    means, _ = class_means(x, label, classes)
    index = jnp.where(label == IGNORE_LABEL, 0, label)[..., None]
    return jnp.sum(unit(x) * unit(jnp.take_along_axis(means, index, 1)), -1)


class IFVD(TapDistiller):
    """Compares cosines, so the two features may differ in the number and meaning of their channels."""

    method: ClassVar[str] = "ifvd"
    title: ClassVar[str] = "IFVD"

    weight: float = option(20.0, "weight of the loss; as in Yang et al. 2022; the authors' own: 200", above=0)

    def compare(self, tap: str, maps: Maps, train: bool):
        batch, label = len(maps.label), maps.label.reshape(len(maps.label), -1)
        student, teacher = (
            variation(x.reshape(batch, -1, x.shape[-1]), label, maps.classes) for x in (maps.student, maps.target)
        )
        return masked_mean((student - teacher) ** 2, label != IGNORE_LABEL)
