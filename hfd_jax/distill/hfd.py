"""Heterogeneous feature distillation (HFD): the frozen EO teacher's features supervise the SAR student's.

At each tap t an adapter a_t maps the student's feature S_t into the teacher's feature space, and

    loss_t = mean over valid (b, h, w) and channels of ( s(a_t(S_t)) - s(T_t) )^2

where s() standardises each channel of each sample over its valid positions: radar and optical features differ in scale
and offset, and the student should learn only the spatial pattern. HFD is the weighted mean of loss_t over the taps. By
default tap A, the input of the classifier, has weight 4 and every other tap weight 1. On the validation split this did
better than equal weights with a tenth of the labels, and no worse with all of them (configs/sweeps/tuning_taps.py). The
student's total loss is cross-entropy + soft Dice + weight * ramp(step) * HFD (`train.steps.student_step`). The
principle is the paper's (arXiv 2210.08988); the equations are this project's own. The adapters are trained together
with the student and discarded at inference.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from hfd_jax.core.losses import masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import TAP_WEIGHTS_RULE, TAPS_RULE, Maps, TapDistiller
from hfd_jax.models.layers import BatchNorm

STD_EPS = 1e-6


def standardise(x, mask):
    """Standardises each channel of each sample to zero mean and unit variance over the valid positions.

    Args:
      x: features [B, H, W, C].
      mask: [B, H, W] bool.

    Returns:
      [B, H, W, C] float32; a constant channel becomes 0.
    """
    x, weights = x.astype(jnp.float32), mask[..., None].astype(jnp.float32)
    count = jnp.maximum(jnp.sum(weights, (1, 2), keepdims=True), 1.0)
    mean = jnp.sum(x * weights, (1, 2), keepdims=True) / count
    centred = (x - mean) * weights
    variance = jnp.sum(centred**2, (1, 2), keepdims=True) / count
    return centred * jax.lax.rsqrt(variance + STD_EPS)


def tap_loss(adapted, target, mask):
    """Masked mean squared difference between standardised features [B, H, W, C]; float32 scalar."""
    difference = standardise(adapted, mask) - standardise(target, mask)
    return masked_mean(difference**2, mask[..., None])


class Adapter(nn.Module):
    """conv1x1 - BatchNorm - relu - conv1x1, in float32: [B, H, W, C_student] -> [B, H, W, channels]."""

    channels: int

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(self.channels, (1, 1), use_bias=False)(x.astype(jnp.float32))
        x = BatchNorm(train)(x)
        # No bias: the standardisation that follows would cancel it.
        return nn.Conv(self.channels, (1, 1), use_bias=False)(nn.relu(x))


class HFD(TapDistiller):
    """One adapter and one loss per tap; see `TapDistiller` for taps and weights."""

    method: ClassVar[str] = "hfd"
    title: ClassVar[str] = "HFD"
    own_weights: ClassVar[Mapping[str, float]] = MappingProxyType({"A": 4.0})

    weight: float = option(17.5, "weight of the loss; this project's choice", above=0)
    taps: tuple[str, ...] = option(("C3", "C4", "C5", "A"), "features to compare", rule=TAPS_RULE)
    tap_weights: tuple[float, ...] = option(
        (), "weights of the taps; (): 4 for A, 1 for every other tap", rule=TAP_WEIGHTS_RULE
    )

    def compare(self, tap: str, maps: Maps, train: bool):
        adapter = Adapter(maps.target.shape[-1], name=f"adapter_{tap}")
        return tap_loss(adapter(maps.student, train), maps.target, maps.mask)
