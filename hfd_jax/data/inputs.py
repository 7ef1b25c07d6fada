"""What the networks see: stored batch -> augmented, standardised arrays, inside the jitted step."""

import dataclasses

import jax.numpy as jnp

from hfd_jax.data import augment
from hfd_jax.data.augment import Augmentation
from hfd_jax.data.facts import BandStatistics
from hfd_jax.data.normalise import Normalisation, filtered, standardise_bands
from hfd_jax.labels import IGNORE_LABEL


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """Everything that turns stored values into network input; part of what a checkpoint records.

    Attributes:
      sar, eo: statistics of the chosen bands.
      normalisation: filter, clip, unit.
      augmentation: of training batches.
      look_axis: of the data set.
    """

    sar: BandStatistics
    eo: BandStatistics
    normalisation: Normalisation
    augmentation: Augmentation
    look_axis: str


def variants(spec: InputSpec) -> int:
    """Ways in which the augmentation may mirror and turn a square crop."""
    return 2 ** len(augment.flip_kinds(spec.look_axis, square=True)) if spec.augmentation.flips else 1


def drawn_variant(key, spec: InputSpec):
    """Number of the variant that `training_input` makes of each square crop: key [B] int32 -> [B] int32."""
    if not spec.augmentation.flips:
        return jnp.zeros(key.shape, jnp.int32)
    drawn = augment.draw_flips(augment.sample_keys(key), spec.look_axis, square=True)
    return jnp.sum(drawn * 2 ** jnp.arange(drawn.shape[1]), -1)


def variant_input(batch: dict, variant, spec: InputSpec) -> dict:
    """The batch of square crops without augmentation but mirrored and turned as this variant is."""
    batch = network_input(batch, spec)
    if not spec.augmentation.flips:
        return batch
    kinds = len(augment.flip_kinds(spec.look_axis, square=True))
    drawn = jnp.array([variant >> number & 1 for number in range(kinds)], bool)
    return augment.apply_flips(jnp.tile(drawn, (len(batch["label"]), 1)), batch, spec.look_axis)


def network_input(batch: dict, spec: InputSpec) -> dict:
    """The batch without augmentation: sar and eo, as far as they are there, standardised [B, H, W, C] float32."""
    if "sar" in batch:
        sar = filtered(batch["sar"].astype(jnp.float32), batch["sar_valid"], spec.normalisation)
        batch = batch | {"sar": sar}
    return _standardise(batch, spec)


def training_input(batch: dict, spec: InputSpec) -> dict:
    """The batch with augmentation; one without "eo" stays without."""
    options = spec.augmentation
    keys = augment.sample_keys(batch["key"])
    sar = batch["sar"].astype(jnp.float32)
    if options.speckle_looks:
        sar = augment.speckle(keys, sar, options.speckle_looks)
    sar = filtered(sar, batch["sar_valid"], spec.normalisation)
    if options.sar_gain_db:
        sar = augment.sar_gain(keys, sar, options.sar_gain_db)
    if options.eo_gain and "eo" in batch:
        batch = batch | {"eo": augment.eo_gain(keys, batch["eo"].astype(jnp.float32), options.eo_gain)}
    batch = _standardise(batch | {"sar": sar}, spec)
    return augment.flip(keys, batch, spec.look_axis) if options.flips else batch


def seen_label(batch: dict, sensor: str):
    """label [B, H, W] with IGNORE_LABEL where `sensor` ("sar" or "eo") has no data."""
    return jnp.where(batch[f"{sensor}_valid"], batch["label"], IGNORE_LABEL)


def _standardise(batch: dict, spec: InputSpec) -> dict:
    clip = spec.normalisation.clip
    return batch | {
        sensor: standardise_bands(batch[sensor], batch[f"{sensor}_valid"], getattr(spec, sensor), clip)
        for sensor in ("sar", "eo")
        if sensor in batch
    }
