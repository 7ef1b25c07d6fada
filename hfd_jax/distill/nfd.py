"""Normalised feature distillation (Liu, Yang and Chen 2022, arXiv 2207.05256): features without their magnitude.

    loss = mean over valid positions and channels of ( s(S) - s(T) )^2

where s() standardises each channel of each sample over its valid positions. The paper's weight was not available; 10 is
this project's choice.
"""

from typing import ClassVar

import jax.numpy as jnp

from hfd_jax.core.options import option
from hfd_jax.distill.base import Maps, TapDistiller, projected
from hfd_jax.distill.hfd import channel_errors, standardise


class NFD(TapDistiller):
    """Compares standardised features; a 1x1 convolution projects the student if the number of channels differs."""

    method: ClassVar[str] = "nfd"
    title: ClassVar[str] = "NFD"

    weight: float = option(
        10.0, "weight of the loss; this project's choice, since the published one was not available", above=0
    )

    def compare(self, tap: str, maps: Maps, train: bool):
        x = projected(maps.student, maps.target.shape[-1], f"projection_{tap}")
        student, teacher = (standardise(features, maps.mask, "image") for features in (x, maps.target))
        return jnp.mean(channel_errors(student, teacher, maps.mask))
