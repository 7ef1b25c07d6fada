"""Attention transfer (Zagoruyko and Komodakis 2017, ICLR, arXiv 1612.03928): matches where the features are strong.

The attention of a position is the mean over channels of the squared feature. Each sample's attention map is divided by
its root mean square over the valid positions:

    loss = mean over valid positions of ( Q_S / rms(Q_S) - Q_T / rms(Q_T) )^2

The paper divides by the norm of the map instead, which makes the squares N times smaller on N positions. The code of
Yang et al. 2022 (arXiv 2204.06986) uses weight 10000 on 64 x 128 positions, together with `kd`; that equals 1.2 here,
for any number of positions.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from hfd_jax.core.losses import EPS, masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import Maps, TapDistiller


def attention(x, mask):
    """Returns the attention map [B, h, w] of x [B, h, w, C], scaled to mean square 1 over the positions in `mask`."""
    energy = jnp.mean(x**2, -1) * mask
    count = jnp.maximum(jnp.sum(mask, (1, 2), keepdims=True), 1)
    return energy * jax.lax.rsqrt(jnp.sum(energy**2, (1, 2), keepdims=True) / count + EPS)


class AttentionTransfer(TapDistiller):
    """Compares attention maps; the two features may differ in the number and meaning of their channels."""

    method: ClassVar[str] = "attention"
    title: ClassVar[str] = "AT"

    weight: float = option(1.2, "weight of the loss; published: 10000, summed over 64 x 128 positions", above=0)

    def compare(self, tap: str, maps: Maps, train: bool):
        difference = attention(maps.student, maps.mask) - attention(maps.target, maps.mask)
        return masked_mean(difference**2, maps.mask)
