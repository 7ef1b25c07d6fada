"""DisOptNet (Kang et al. 2022, IEEE TGRS, doi 10.1109/TGRS.2022.3165209): an optical branch inside the SAR network.

Based on the article's abstract and its authors' code: a second branch of the SAR network imitates the optical network.
It learns from the teacher's feature (mean squared distance) and prediction (segmentation loss against the most probable
class, plus pixel-wise soft targets). The features of both branches are fused, classified and compared with the label:

    loss = | o - T |^2 + seg( z_o, argmax z_T ) + pixel_weight * KL( z_T || z_o ) + seg( z_fused, label )

with seg = cross-entropy + soft Dice. All terms have weight 1 except the soft targets, which the code sums over the 8
images of a batch: this equals pixel_weight 8 with the mean used here. The code's first term averages over two encoder
stages and the decoder; here it covers the decoder only.

This implementation differs from the article. In the article, branch and fusion are part of the final network, whose
prediction is the fused one; here they are adapters on the student's feature that are discarded after training, and the
student's own classifier predicts, so that all methods are compared with the same network at the same cost. The branch
has two 3x3 convolutions instead of a copy of half the encoder and the decoder, and the fusion has no attention gates.
Unlabelled pairs contribute all terms but the last: as in the article, the teacher's prediction does not replace the
label there.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.losses import cross_entropy, masked_mean, soft_dice
from hfd_jax.core.options import option
from hfd_jax.distill.base import LOGITS, Distiller, Outputs, Terms, compared
from hfd_jax.distill.kd import logit_loss
from hfd_jax.models.layers import BatchNorm, convolution
from hfd_jax.models.upsampling import upsample


class DisOptNet(Distiller):
    """Optical branch and fusion.

    Attributes:
      tap: the feature that the branch starts from and imitates.
      pixel_weight: weight of the soft targets within the loss.
    """

    method: ClassVar[str] = "disoptnet"
    title: ClassVar[str] = "DisOptNet"

    weight: float = option(1.0, "weight of the loss; as published", above=0)
    pixel_weight: float = option(
        8.0, "weight of the soft targets within the loss; published: 1, summed over 8 images", at_least=0
    )
    tap: str = option("A", "feature that the branch starts from and imitates", rule="a tap of both networks")

    @property
    def taps(self) -> tuple[str, ...]:
        return (self.tap, LOGITS)

    @nn.compact
    def __call__(self, student: Outputs, teacher: Outputs, label, valid, train: bool = True) -> Terms:
        maps = compared(student, teacher, self.tap, label, valid, self.method)
        channels = maps.target.shape[-1]
        x = maps.masked_student
        optical = x
        for number in (1, 2):
            optical = self._block(optical, channels, 3, f"branch_{number}", train)
        fused = self._block(jnp.concatenate([x, optical], -1), channels, 1, "fusion", train)
        optical_logits, fused_logits = (
            upsample(nn.Conv(maps.classes, (1, 1), name=f"{name}_classifier")(y), valid.shape[1:])
            for name, y in (("optical", optical), ("fused", fused))
        )
        teacher_logits = jax.lax.stop_gradient(teacher.logits)
        prediction = jnp.where(valid, jnp.argmax(teacher_logits, -1), IGNORE_LABEL)
        terms = {
            "feature": masked_mean((optical - maps.target) ** 2, maps.mask[..., None]),
            "hard": _segmentation(optical_logits, prediction),
            "soft": self.pixel_weight * logit_loss(optical_logits, teacher_logits, valid),
            "fused": _segmentation(fused_logits, jnp.where(valid, label, IGNORE_LABEL)),
        }
        return {"disoptnet": sum(terms.values()), **{f"disoptnet_{name}": value for name, value in terms.items()}}

    def _block(self, x, channels: int, kernel: int, name: str, train: bool):
        x = convolution(channels, kernel, name=f"{name}_conv")(x)
        return nn.relu(BatchNorm(train, name=f"{name}_bn")(x))


def _segmentation(logits, label):
    return cross_entropy(logits, label) + soft_dice(logits, label)
