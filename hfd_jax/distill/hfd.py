"""Heterogeneous feature distillation (HFD): the frozen EO teacher's features supervise the SAR student's.

At each tap t an adapter a_t predicts the teacher's feature T_t from the student's feature S_t. With s() standardising
each channel over the valid positions of the batch, the error of channel c is

    e_tc = mean over valid (b, h, w) of ( a_t(S_t) - s(T_t) )^2,

the share of the channel's variance that the student does not explain: 1 if it explains nothing. Standardising over each
image (`over`) would remove the channel's level, which tells a flooded image from a dry one, and would amplify the noise
of an image without contrast to the same variance. The loss of the tap is

    loss_t = mean over c of ( exp(-v_tc) * e_tc + v_tc ) / 2

with one learnt log-variance v_tc per channel, the negative log-likelihood of a Gaussian (Kendall et al. 2018, arXiv
1705.07115, weigh tasks this way). At its optimum v_tc = log e_tc, so a channel counts in proportion to 1 / e_tc: what
radar shows too is learnt precisely, and what only optics can show fades out instead of distracting the student.
For the same reason the adapter's output is not standardised: where radar says nothing, it can fall back to the mean.

HFD is the weighted mean of loss_t over the taps. By default tap A, the input of the classifier, has weight 4 and every
other tap weight 1 (configs/sweeps/tuning_taps.py). Where the teacher feeds the student, and how the share of
distillation in the gradient is limited, is `train.steps.student_step`. The principle is the paper's (arXiv 2210.08988);
the equations are this project's own. The adapters are trained together with the student and discarded at inference.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from hfd_jax.core.collectives import global_sum
from hfd_jax.core.options import option
from hfd_jax.distill.base import TAP_WEIGHTS_RULE, TAPS_RULE, Maps, Outputs, TapDistiller, Terms, compared
from hfd_jax.models.layers import BatchNorm

STD_EPS = 1e-6
FORMS = ("likelihood", "squared", "standardised")
EXTENTS = ("batch", "image")


def standardise(x, mask, over: str):
    """Standardises each channel to zero mean and unit variance over the valid positions of each image or of the batch.

    Args:
      x: features [B, H, W, C].
      mask: [B, H, W] bool.
      over: "image" or "batch" (of all devices).

    Returns:
      [B, H, W, C] float32; 0 at invalid positions and in constant channels.
    """

    def total(values):
        inside = jnp.sum(values, (1, 2), keepdims=True)
        return inside if over == "image" else global_sum(jnp.sum(inside, 0, keepdims=True))

    x, weights = x.astype(jnp.float32), mask[..., None].astype(jnp.float32)
    count = jnp.maximum(total(weights), 1.0)
    centred = (x - total(x * weights) / count) * weights
    return centred * jax.lax.rsqrt(total(centred**2) / count + STD_EPS)


def channel_errors(prediction, target, mask):
    """Mean squared difference per channel of two maps [B, H, W, C] over the valid positions; [C] float32."""
    weights = mask[..., None].astype(jnp.float32)
    difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    total = global_sum(jnp.sum(difference**2 * weights, (0, 1, 2)))
    return total / jnp.maximum(global_sum(jnp.sum(weights)), 1.0)


class Adapter(nn.Module):
    """conv1x1 - BatchNorm - relu - conv1x1: [B, H, W, C_student] -> [B, H, W, channels].

    Attributes:
      channels: number of channels of the result.
      dtype: computation dtype and that of the result; parameters and batch statistics are float32.
    """

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(self.channels, (1, 1), use_bias=False, dtype=self.dtype)(x)
        x = BatchNorm(train, self.dtype)(x)
        return nn.Conv(self.channels, (1, 1), dtype=self.dtype)(nn.relu(x))


class HFD(TapDistiller):
    """One adapter and one loss per tap; see `TapDistiller` for taps and weights."""

    method: ClassVar[str] = "hfd"
    title: ClassVar[str] = "HFD"
    own_weights: ClassVar[Mapping[str, float]] = MappingProxyType({"A": 4.0})

    weight: float = option(2.0, "weight of the loss; this project's choice", above=0)
    taps: tuple[str, ...] = option(("C3", "C4", "C5", "A"), "features to compare", rule=TAPS_RULE)
    tap_weights: tuple[float, ...] = option(
        (), "weights of the taps; (): 4 for A, 1 for every other tap", rule=TAP_WEIGHTS_RULE
    )
    form: str = option(
        "likelihood",
        "likelihood: the loss above; squared: without log-variances; standardised: squared, and the adapter's output "
        "is standardised as well, as in version 0.1",
        choices=FORMS,
        before="standardised",
    )
    over: str = option(
        "batch",
        "whether the teacher's features are standardised over the batch or over each image, as in version 0.1",
        choices=EXTENTS,
        before="image",
    )

    @nn.compact
    def __call__(self, student: Outputs, teacher: Outputs, label, valid, train: bool = True) -> Terms:
        """See `Distiller`; also returns the mean error e_tc of each tap, as "hfd_<tap>"."""
        total, errors = 0.0, {}
        for weight, tap in zip(self.weights(), self.taps, strict=True):
            loss, error = self.compare(tap, compared(student, teacher, tap, label, valid, self.method), train)
            total, errors[f"hfd_{tap}"] = total + weight * loss, error
        return {"hfd": total, **errors}

    def compare(self, tap: str, maps: Maps, train: bool):
        """Returns the loss and the mean error of one tap, float32 scalars."""
        channels = maps.target.shape[-1]
        prediction = Adapter(channels, maps.dtype, name=f"adapter_{tap}")(maps.student, train)
        if self.form == "standardised":
            prediction = standardise(prediction, maps.mask, self.over)
        errors = channel_errors(prediction, standardise(maps.target, maps.mask, self.over), maps.mask)
        if self.form != "likelihood":
            return jnp.mean(errors), jnp.mean(errors)
        log_variance = self.param(f"log_variance_{tap}", nn.initializers.zeros, (channels,))
        return jnp.mean(jnp.exp(-log_variance) * errors + log_variance) / 2, jnp.mean(errors)
