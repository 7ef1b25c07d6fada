"""Channel-wise distillation (Shu et al. 2021, ICCV, arXiv 2011.13256): every channel as a distribution over positions.

    loss = T^2 * mean over channels and samples of KL( softmax_p(T_c / T) || softmax_p(S_c / T) )

where the softmax runs over the valid positions p of one sample; a channel's offset does not matter. The paper averages
alike, so its weights carry over: 3 where logits are compared, 50 for a feature, both with T = 4. Both at once are taps
("A", "logits") with weight 53 and tap_weights (50, 3).
"""

from typing import ClassVar

import jax.numpy as jnp

from hfd_jax.core.losses import masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import LOGITS, Maps, TapDistiller, projected
from hfd_jax.distill.relations import divergence


class CWD(TapDistiller):
    """Taps may name LOGITS. A 1x1 convolution brings the student's channels to the teacher's number where it differs.

    Attributes:
      temperature: T.
    """

    method: ClassVar[str] = "cwd"
    title: ClassVar[str] = "CWD"
    accepts_logits: ClassVar[bool] = True

    weight: float = option(3.0, "weight of the loss; as published for logits; 50 for a feature", above=0)
    taps: tuple[str, ...] = option((LOGITS,), '"logits" or features')
    temperature: float = option(4.0, "as published; its square multiplies the loss", above=0)
    tap_weights: tuple[float, ...] = option((), "one per tap; () for equal weights")

    def compare(self, tap: str, maps: Maps, train: bool):
        batch, channels = maps.target.shape[0], maps.target.shape[-1]
        x = projected(maps.student, channels, f"projection_{tap}")
        x, target = (y.reshape(batch, -1, channels) / self.temperature for y in (x, maps.target))
        mask = maps.mask.reshape(batch, -1, 1)
        per_channel = divergence(target, x, mask, axis=1)
        return self.temperature**2 * masked_mean(per_channel, jnp.any(mask, 1))
