"""Augmentation of a batch on the device: pure JAX, random numbers per sample.

A sample's augmentation depends only on its key, which the data pipeline draws from the run's seed. It does not depend
on the sample's position in the batch or on the number of devices and processes. A new seed does not recompile the step.
"""

import dataclasses

import jax
import jax.numpy as jnp

from hfd_jax.data.units import linear_to_db

SPATIAL = ("sar", "eo", "label", "sar_valid", "eo_valid")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augmentation settings.

    Attributes:
      flips: mirror along the axes that preserve the look direction; with look_axis "any" along both, and rotate by 90
        degrees.
      sar_gain_db: one offset per sample, uniform within plus or minus this, dB.
      eo_gain: one factor per sample, uniform within 1 plus or minus this.
      speckle_looks: multiplies SAR power by Gamma noise with this number of looks; 0 disables it.
    """

    flips: bool = True
    sar_gain_db: float = 0.0
    eo_gain: float = 0.0
    speckle_looks: float = 0.0


def flip_axes(look_axis: str) -> tuple[int, ...]:
    """Axes of an [H, W] image along which a flip preserves the look direction."""
    return {"x": (0,), "y": (1,), "any": (0, 1)}[look_axis]


def sample_keys(seeds):
    """One JAX key per sample [B] from the batch's own random integers [B] int32."""
    return jax.vmap(jax.random.key)(seeds)


def flip(keys, batch: dict, look_axis: str) -> dict:
    """Mirrors and rotates every sample of [B, H, W, ...] arrays at random, all arrays of a sample alike."""
    height, width = batch["label"].shape[1:3]
    axes = flip_axes(look_axis)
    turns = look_axis == "any" and height == width

    def one(key, sample):
        for axis in axes:
            mirrored = jax.random.bernoulli(jax.random.fold_in(key, axis))
            sample = {k: jnp.where(mirrored, jnp.flip(x, axis), x) for k, x in sample.items()}
        if turns:
            turned = jax.random.bernoulli(jax.random.fold_in(key, 2))
            sample = {k: jnp.where(turned, jnp.rot90(x), x) for k, x in sample.items()}
        return sample

    return batch | jax.vmap(one)(keys, {k: batch[k] for k in SPATIAL if k in batch})


def sar_gain(keys, db, amount: float):
    """Adds one uniform offset in dB to each sample of [B, H, W, C]."""
    offset = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 3), (), minval=-amount, maxval=amount))(
        keys
    )
    return db + offset[:, None, None, None]


def speckle(keys, db, looks: float):
    """Multiplies the power behind [B, H, W, C] dB values by Gamma(looks) / looks, per pixel and band."""
    noise = jax.vmap(lambda key: jax.random.gamma(jax.random.fold_in(key, 4), looks, db.shape[1:]))(keys) / looks
    return db + linear_to_db(noise, jnp)


def eo_gain(keys, eo, amount: float):
    """Multiplies each sample of [B, H, W, C] by one uniform factor."""
    factor = jax.vmap(
        lambda key: jax.random.uniform(jax.random.fold_in(key, 5), (), minval=1 - amount, maxval=1 + amount)
    )(keys)
    return eo * factor[:, None, None, None]
