"""Masked generative distillation (Yang et al. 2022, ECCV, arXiv 2205.01529): completes a masked student feature.

A share of the student's positions, redrawn for each sample and step, is set to 0. A generator (conv3x3 - relu -
conv3x3) reconstructs the teacher's whole feature from the rest:

    loss = mean over valid positions and channels of ( g(S * kept) - T )^2

The paper sums over positions and channels and uses weight 2e-5: with its 2048 channels and 64 x 64 positions this
equals 168 here, which is used for narrower features too. The paper masks 0.75 of the positions. It compares the
encoder's last feature (C5) and adds channel-wise distillation of the logits (`cwd`). Here the default is tap A.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax

from hfd_jax.core.losses import masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import TAPS_RULE, Maps, TapDistiller, projected
from hfd_jax.distill.relations import sample_keys


class MGD(TapDistiller):
    """Compares generated features; a 1x1 convolution projects the student if the number of channels differs.

    Attributes:
      masked: share of positions set to 0. Invalid positions are also set to 0, to keep them out of their neighbours.
    """

    method: ClassVar[str] = "mgd"
    title: ClassVar[str] = "MGD"

    weight: float = option(168.0, "weight of the loss; published: 2e-5 of a sum over 2048 x 64 x 64 values", above=0)
    masked: float = option(0.75, "share of the positions to mask; as published", at_least=0, at_most=1)
    taps: tuple[str, ...] = option(("A",), "features to compare; published: C5", rule=TAPS_RULE)

    @classmethod
    def problems(cls, values: Mapping[str, Any], known: Sequence[str]) -> Iterator[tuple[str, str]]:
        yield from super().problems(values, known)
        if values["masked"] == 1:
            yield "masked", "expected a share below 1; 1 would mask the student's whole feature"

    def compare(self, tap: str, maps: Maps, train: bool):
        channels, grid = maps.target.shape[-1], maps.mask.shape[1:]
        keys = sample_keys(self.make_rng("noise"), len(maps.mask))
        kept = jax.vmap(lambda key: jax.random.uniform(key, grid))(keys) >= self.masked
        x = projected(maps.student, channels, f"projection_{tap}") * (kept & maps.mask)[..., None]
        x = nn.Conv(channels, (3, 3), name=f"generator_{tap}_1")(x)
        x = nn.Conv(channels, (3, 3), name=f"generator_{tap}_2")(nn.relu(x))
        return masked_mean((x - maps.target) ** 2, maps.mask[..., None])
