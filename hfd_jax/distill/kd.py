"""Logit distillation (Hinton et al. 2015, arXiv 1503.02531), pixel by pixel as in Liu et al. 2019 (arXiv 1903.04197).

    loss = T^2 * mean over valid pixels of KL( softmax(teacher / T) || softmax(student / T) )

T^2 keeps the size of the gradient independent of T. The weight 1 is that of Yang et al. 2022 (arXiv 2204.06986), who
also sum the divergence over classes and average it over pixels, and whose code adds this loss to every other method.
Liu et al. use 10, and their code sums over the batch. `distill.kd.fade` is the adaptive weighting of AICSD (`aicsd`).
"""

from typing import ClassVar

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
    """

    method: ClassVar[str] = "kd"
    title: ClassVar[str] = "KD"
    taps: ClassVar[tuple[str, ...]] = (LOGITS,)

    weight: float = option(1.0, "weight of the loss; as in Yang et al. 2022", above=0)
    temperature: float = option(1.0, "temperature; its square multiplies the loss", above=0)
    fade: bool = option(False, "decrease the weight linearly to 0 at the last step, as published together with aicsd")

    def __call__(self, student: Outputs, teacher: Outputs, label, valid, train: bool = True) -> Terms:
        return {"kd": logit_loss(student.logits, teacher.logits, valid, self.temperature)}
