"""Channel-wise distillation (Shu et al. 2021, ICCV, arXiv 2011.13256): each channel is a distribution over positions.

    loss = T^2 * mean over channels and samples of KL( softmax_p(T_c / T) || softmax_p(S_c / T) )

where the softmax runs over the valid positions p of one sample, so that adding a constant to a channel changes nothing.
The paper averages in the same way, so its weights carry over: 3 for logits and 50 for a feature, both with T = 4. To
compare both, set taps to ("A", "logits"), weight to 53 and tap_weights to (50, 3).
"""

from typing import ClassVar

import jax.numpy as jnp

from hfd_jax.core.losses import masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import LOGITS, TAP_WEIGHTS_RULE, TAPS_RULE, Maps, TapDistiller, projected
from hfd_jax.distill.relations import divergence


class CWD(TapDistiller):
    """Compares features or LOGITS; a 1x1 convolution projects the student if the number of channels differs.

    Attributes:
      temperature: T.
    """

    method: ClassVar[str] = "cwd"
    title: ClassVar[str] = "CWD"
    accepts_logits: ClassVar[bool] = True

    weight: float = option(3.0, "weight of the loss; as published for logits; published for a feature: 50", above=0)
    taps: tuple[str, ...] = option((LOGITS,), 'features to compare, or "logits"', rule=TAPS_RULE)
    temperature: float = option(4.0, "temperature; its square multiplies the loss; as published", above=0)
    tap_weights: tuple[float, ...] = option((), "weights of the taps; (): equal weights", rule=TAP_WEIGHTS_RULE)

    def compare(self, tap: str, maps: Maps, train: bool):
        batch, channels = maps.target.shape[0], maps.target.shape[-1]
        x = projected(maps.student, channels, f"projection_{tap}")
        x, target = (y.reshape(batch, -1, channels) / self.temperature for y in (x, maps.target))
        mask = maps.mask.reshape(batch, -1, 1)
        per_channel = divergence(target, x, mask, axis=1)
        return self.temperature**2 * masked_mean(per_channel, jnp.any(mask, 1))
