"""Inter-class similarity distillation (AICSD; Mansourian, Ahmadi and Kasaei 2025, Multimedia Tools and Applications,
arXiv 2308.04243).

Class k is represented by the distribution of its logit over the valid positions of a sample, I_k = softmax_p(z_k / T).
The similarity of two classes is the divergence of their distributions:

    D(i, j) = KL( I_i || I_j ),   loss = mean over samples and pairs (i, j) of ( D_S(i, j) - D_T(i, j) )^2

The rows of D are first scaled to length 1, so the loss compares which classes resemble a class, not how much. The
authors' code averages D over the batch before it scales, copies the upper triangle of D into the lower one, and divides
the loss by the batch size; here each sample has its own full matrix. Their weight 9500 for batches of 6 equals 1583
here. They add `kd` with an adaptive weighting: `distill.kd.adaptive`.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from hfd_jax.core.losses import masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import LOGITS, Distiller, Outputs, Terms
from hfd_jax.distill.relations import masked_log_softmax, similarities, unit


def class_divergences(logits, mask, temperature: float):
    """D for each sample: logits [B, N, K], mask [B, N] -> [B, K, K]; 0 for a sample without valid positions."""
    mask = mask[..., None]
    log = masked_log_softmax(logits.astype(jnp.float32) / temperature, mask, 1)
    log = jnp.where(mask, log, 0.0).swapaxes(1, 2)
    cross = similarities(jnp.where(mask.swapaxes(1, 2), jnp.exp(log), 0.0), log)
    return jnp.diagonal(cross, axis1=1, axis2=2)[..., None] - cross


class AICSD(Distiller):
    """Matches the similarities between the student's classes to those between the teacher's.

    Attributes:
      temperature: T.
      scaled: whether the rows of the matrices are scaled to length 1.
    """

    method: ClassVar[str] = "aicsd"
    title: ClassVar[str] = "AICSD"
    taps: ClassVar[tuple[str, ...]] = (LOGITS,)

    weight: float = option(1583.0, "weight of the loss; published: 9500, divided by a batch of 6", above=0)
    temperature: float = option(1.0, "temperature of the distributions over positions", above=0)
    scaled: bool = option(
        True, "scale the rows of the matrices to length 1, as published; if not, a weight of 0.002 suits", before=False
    )

    def __call__(self, student: Outputs, teacher: Outputs, label, valid, train: bool = True) -> Terms:
        batch, classes = len(valid), student.logits.shape[-1]
        mask = valid.reshape(batch, -1)
        of_student, of_teacher = (
            class_divergences(x.reshape(batch, -1, classes), mask, self.temperature)
            for x in (student.logits, jax.lax.stop_gradient(teacher.logits))
        )
        if self.scaled:
            of_student, of_teacher = unit(of_student), unit(of_teacher)
        loss = masked_mean((of_student - of_teacher) ** 2, jnp.any(mask, 1)[:, None, None])
        return {"aicsd": loss}
