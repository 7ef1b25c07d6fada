"""Attention transfer (Zagoruyko and Komodakis 2017, ICLR, arXiv 1612.03928): the student looks where the teacher looks.

A position's attention is the mean over channels of the squared feature; its map over the valid positions of a sample is
divided by its root mean square:

    loss = mean over valid positions of ( Q_S / rms(Q_S) - Q_T / rms(Q_T) )^2

The paper divides by the map's norm, so that the squares are N times smaller on N positions. The code of Yang et al.
2022 (arXiv 2204.06986) weighs 10000 on 64 x 128 positions, with `kd` beside it: 1.2 here, on any number of them.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from hfd_jax.core.losses import EPS, masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import Maps, TapDistiller


def attention(x, mask):
    """Attention of x [B, h, w, C] with mean square 1 over the valid positions [B, h, w] of each sample."""
    energy = jnp.mean(x**2, -1) * mask
    count = jnp.maximum(jnp.sum(mask, (1, 2), keepdims=True), 1)
    return energy * jax.lax.rsqrt(jnp.sum(energy**2, (1, 2), keepdims=True) / count + EPS)


class AttentionTransfer(TapDistiller):
    """Compares where features are strong; their channels may differ in number and meaning."""

    method: ClassVar[str] = "attention"
    title: ClassVar[str] = "AT"

    weight: float = option(1.2, "weight of the loss; published: 10000, for sums over 64 x 128 positions", above=0)

    def compare(self, tap: str, maps: Maps, train: bool):
        difference = attention(maps.student, maps.mask) - attention(maps.target, maps.mask)
        return masked_mean(difference**2, maps.mask)
