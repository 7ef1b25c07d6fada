"""Logit distillation (Hinton et al. 2015, arXiv 1503.02531), pixel by pixel as in Liu et al. 2019 (arXiv 1903.04197).

    loss = T^2 * mean over valid pixels of KL( softmax(teacher / T) || softmax(student / T) )

T^2 keeps the size of the gradient independent of T. The weight 1 is that of Yang et al. 2022 (arXiv 2204.06986), who
also sum the divergence over classes and average it over pixels, and whose code adds this loss to every other method.
Liu et al. use 10, and their code sums over the batch.

The authors of AICSD (`aicsd`) weigh the losses with a share a of the training that is done,

    a * ( cross-entropy + AICSD ) + (1 - a) * KD

With `distill.kd.adaptive` this loss is multiplied by (1 - a) / a, which is the same up to the factor a that all terms
share; clipping the gradient and Adam's normalisation remove that factor. Their weight of KD, 10, belongs to a mean over
21 classes and equals 0.48 here. `distill.kd.fade` multiplies this loss by 1 - a alone, so that labels count from the
start.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from hfd_jax.core.losses import masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import LOGITS, Distiller, Outputs, Terms
from hfd_jax.distill.relations import divergence


def logit_loss(student, teacher, valid, temperature: float = 1.0):
    """Computes the loss above.

    Args:
      student, teacher: logits [B, H, W, K]; no gradients flow into the teacher's.
      valid: [B, H, W] bool.
      temperature: T.

    Returns:
      float32 scalar.
    """
    teacher = jax.lax.stop_gradient(teacher).astype(jnp.float32) / temperature
    per_pixel = divergence(teacher, student.astype(jnp.float32) / temperature)
    return temperature**2 * masked_mean(per_pixel, valid)


class KD(Distiller):
    """Matches the student's class distribution to the teacher's at each pixel.

    Attributes:
      temperature: T.
      fade, adaptive: changes of the weight during training; `fade` is applied by the training step.
    """

    method: ClassVar[str] = "kd"
    title: ClassVar[str] = "KD"
    taps: ClassVar[tuple[str, ...]] = (LOGITS,)

    weight: float = option(1.0, "weight of the loss; as in Yang et al. 2022", above=0)
    temperature: float = option(1.0, "temperature; its square multiplies the loss", above=0)
    fade: bool = option(False, "decrease the weight linearly to 0 at the last step")
    adaptive: bool = option(
        False, "multiply by (1 - a) / a, where a rises to 1 at the last step; as published with aicsd"
    )

    @classmethod
    def problems(cls, values: Mapping[str, Any], known: Sequence[str]) -> Iterator[tuple[str, str]]:
        yield from super().problems(values, known)
        if values["fade"] and values["adaptive"]:
            yield "adaptive", "expected at most one of fade and adaptive"

    @nn.compact
    def __call__(self, student: Outputs, teacher: Outputs, label, valid, train: bool = True) -> Terms:
        loss = logit_loss(student.logits, teacher.logits, valid, self.temperature)
        if self.adaptive:
            share = self.progress(train)
            loss *= (1 - share) / share
        return {"kd": loss}
