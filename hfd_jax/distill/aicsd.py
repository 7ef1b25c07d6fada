"""Inter-class similarity distillation (AICSD; Mansourian, Ahmadi and Kasaei 2025, Multimedia Tools and Applications,
arXiv 2308.04243).

Class k is represented by the distribution of its logit over the valid positions of a sample, I_k = softmax_p(z_k / T).
The similarity of two classes is the divergence of their distributions:

    D(i, j) = KL( I_i || I_j ),   loss = mean over samples and pairs (i, j) of ( D_S - D_T )^2

The weight is this project's own. The authors use 9500, but they scale the rows of the matrices and average the
divergences over the batch, not over positions, so their weight does not carry over. They add `kd` with weight 10, and
their adaptive weighting reduces its influence during training: `distill.kd.fade`.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from hfd_jax.core.losses import masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import LOGITS, Distiller, Outputs, Terms
from hfd_jax.distill.relations import masked_log_softmax, similarities


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
    """

    method: ClassVar[str] = "aicsd"
    title: ClassVar[str] = "AICSD"
    taps: ClassVar[tuple[str, ...]] = (LOGITS,)

    weight: float = option(
        0.002, "weight of the loss; this project's choice, since the published loss is normalised differently", above=0
    )
    temperature: float = option(1.0, "temperature of the distributions over positions", above=0)

    def __call__(self, student: Outputs, teacher: Outputs, label, valid, train: bool = True) -> Terms:
        batch, classes = len(valid), student.logits.shape[-1]
        mask = valid.reshape(batch, -1)
        of_student, of_teacher = (
            class_divergences(x.reshape(batch, -1, classes), mask, self.temperature)
            for x in (student.logits, jax.lax.stop_gradient(teacher.logits))
        )
        loss = masked_mean((of_student - of_teacher) ** 2, jnp.any(mask, 1)[:, None, None])
        return {"aicsd": loss}
