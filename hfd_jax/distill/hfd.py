"""Heterogeneous feature distillation (HFD): the frozen EO teacher's features supervise the SAR student's.

For every tap t an adapter a_t translates the student's feature S_t into the teacher's feature space, and

    loss_t = mean over valid (b, h, w) and channels of ( s(a_t(S_t)) - s(T_t) )^2

where s() standardises each channel of each sample over its valid positions: what radar and camera see differs in
scale and offset, and only the pattern is to be learnt. HFD is the weighted mean of loss_t over the taps. The
principle is the paper's (arXiv 2210.08988), the equations are this project's; adapters are trained with the student
and left behind at inference.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hfd_jax.losses import masked_mean
from hfd_jax.models.layers import BatchNorm

STD_EPS = 1e-6
TAUGHT = "teacher_"  # a batch may bring the teacher's features: "teacher_C3", ...


def standardise(x, mask):
    """Zero mean and unit variance per sample and channel, over valid positions.

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


def tap_loss(adapted, target, mask, axis_name: str | None = None):
    """Masked mean of the squared difference between standardised features [B, H, W, C]; float32 scalar."""
    difference = standardise(adapted, mask) - standardise(target, mask)
    return masked_mean(difference**2, mask[..., None], axis_name)


def mask_at(valid, shape):
    """Reduces a pixel mask [B, H, W] to a feature grid (h, w): a position counts when half its pixels do.

    Raises:
      ValueError: where H, W are no multiples of h, w.
    """
    (batch, height, width), (h, w) = valid.shape, shape
    if height % h or width % w:
        raise ValueError(f"a mask of {height} x {width} pixels does not divide into {h} x {w} feature positions")
    share = valid.astype(jnp.float32).reshape(batch, h, height // h, w, width // w).mean((2, 4))
    return share >= 0.5


class Adapter(nn.Module):
    """conv1x1 - BatchNorm - relu - conv1x1, in float32: [B, H, W, C_student] -> [B, H, W, channels]."""

    channels: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(self.channels, (1, 1), use_bias=False)(x.astype(jnp.float32))
        x = BatchNorm(train, axis_name=self.axis_name)(x)
        # No bias: the standardisation that follows would take it away.
        return nn.Conv(self.channels, (1, 1), use_bias=False)(nn.relu(x))


class HFD(nn.Module):
    """Holds the adapters, returns the loss.

    Attributes:
      taps: names of the features to compare.
      tap_weights: one per tap; empty for equal weights.
      axis_name: pmap axis; None under jit.
    """

    taps: tuple[str, ...] = ("C3", "C4", "C5", "A")
    tap_weights: tuple[float, ...] = ()
    axis_name: str | None = None

    @nn.compact
    def __call__(self, student: dict[str, Any], teacher: dict[str, Any], valid, train: bool = True):
        """Compares features.

        Args:
          student: tap -> [B, h, w, C]; gradients flow into it.
          teacher: tap -> [B, h, w, C']; none flow into it.
          valid: [B, H, W] bool, the pixels that both sensors saw.
          train: batch statistics of the adapters come from the batch.

        Returns:
          {tap: loss} and their weighted mean under "hfd", float32 scalars.

        Raises:
          ValueError: a tap that either network does not have.
        """
        weights = self.tap_weights or (1.0,) * len(self.taps)
        losses = {}
        for tap in self.taps:
            if tap not in student or tap not in teacher:
                raise ValueError(f"distill.taps names {tap!r}; the features are {', '.join(student)}")
            target = jax.lax.stop_gradient(teacher[tap])
            adapted = Adapter(target.shape[-1], self.axis_name, name=f"adapter_{tap}")(student[tap], train)
            losses[tap] = tap_loss(adapted, target, mask_at(valid, target.shape[1:3]), self.axis_name)
        mean = sum(w * losses[tap] for w, tap in zip(weights, self.taps, strict=True)) / sum(weights)
        return {"hfd": mean, **losses}
