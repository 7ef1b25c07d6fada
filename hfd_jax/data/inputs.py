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


def network_input(batch: dict, spec: InputSpec) -> dict:
    """The batch without augmentation: sar and eo standardised [B, H, W, C] float32, the rest as it is."""
    sar = filtered(batch["sar"].astype(jnp.float32), batch["sar_valid"], spec.normalisation)
    return _standardise(batch | {"sar": sar}, spec)


def training_input(batch: dict, spec: InputSpec) -> dict:
    """The batch with augmentation."""
    options = spec.augmentation
    keys = augment.sample_keys(batch["key"])
    sar, eo = batch["sar"].astype(jnp.float32), batch["eo"].astype(jnp.float32)
    if options.speckle_looks:
        sar = augment.speckle(keys, sar, options.speckle_looks)
    sar = filtered(sar, batch["sar_valid"], spec.normalisation)
    if options.sar_gain_db:
        sar = augment.sar_gain(keys, sar, options.sar_gain_db)
    if options.eo_gain:
        eo = augment.eo_gain(keys, eo, options.eo_gain)
    batch = _standardise(batch | {"sar": sar, "eo": eo}, spec)
    return augment.flip(keys, batch, spec.look_axis) if options.flips else batch


def seen_label(batch: dict, sensor: str):
    """label [B, H, W] with IGNORE_LABEL where `sensor` ("sar" or "eo") has no data."""
    return jnp.where(batch[f"{sensor}_valid"], batch["label"], IGNORE_LABEL)


def _standardise(batch: dict, spec: InputSpec) -> dict:
    clip = spec.normalisation.clip
    return batch | {
        "sar": standardise_bands(batch["sar"], batch["sar_valid"], spec.sar, clip),
        "eo": standardise_bands(batch["eo"], batch["eo_valid"], spec.eo, clip),
    }
