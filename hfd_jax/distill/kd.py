"""Logit distillation (Hinton et al. 2015, arXiv 1503.02531), pixel by pixel as in Liu et al. 2019 (arXiv 1903.04197).

    loss = T^2 * mean over valid pixels of KL( softmax(teacher / T) || softmax(student / T) )

T^2 keeps the gradient's size when T changes. Weight 1 is that of Yang et al. 2022 (arXiv 2204.06986), whose divergence
is summed over classes and averaged over pixels as ours is, and which their code adds to every other method. Liu et al.
weigh 10, and their code sums over the batch. `distill.kd.fade` is AICSD's adaptive weighting (`aicsd`).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from hfd_jax.core.losses import masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import LOGITS, Distiller, Outputs, Terms
from hfd_jax.distill.relations import divergence


def logit_loss(student, teacher, valid, temperature: float = 1.0):
    """The formula above.

    Args:
      student, teacher: logits [B, H, W, K]; no gradient flows into the teacher's.
      valid: [B, H, W] bool.
      temperature: T.

    Returns:
      float32 scalar.
    """
    teacher = jax.lax.stop_gradient(teacher).astype(jnp.float32) / temperature
    per_pixel = divergence(teacher, student.astype(jnp.float32) / temperature)
    return temperature**2 * masked_mean(per_pixel, valid)


class KD(Distiller):
    """The student's class distribution follows the teacher's.

    Attributes:
      temperature: T.
    """

    method: ClassVar[str] = "kd"
    title: ClassVar[str] = "KD"
    taps: ClassVar[tuple[str, ...]] = (LOGITS,)

    weight: float = option(1.0, "weight of the loss; as of Yang et al. 2022", above=0)
    temperature: float = option(1.0, "its square multiplies the loss", above=0)
    fade: bool = option(False, "the weight falls linearly to 0 at the last step, as beside aicsd")

    def __call__(self, student: Outputs, teacher: Outputs, label, valid, train: bool = True) -> Terms:
        return {"kd": logit_loss(student.logits, teacher.logits, valid, self.temperature)}
