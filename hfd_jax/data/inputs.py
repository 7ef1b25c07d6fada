"""Network input: stored batch -> augmented, standardised arrays, inside the jitted step."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data import augment
from hfd_jax.data.augment import Augmentation
from hfd_jax.data.facts import BandStatistics
from hfd_jax.data.normalise import Normalisation, filtered, standardise_bands


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

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "InputSpec":
        """The inverse of `dataclasses.asdict`, also for values that were stored as JSON."""
        bands = {sensor: BandStatistics(**{k: tuple(v) for k, v in values[sensor].items()}) for sensor in ("sar", "eo")}
        return cls(
            normalisation=Normalisation(**values["normalisation"]),
            augmentation=Augmentation(**values["augmentation"]),
            look_axis=values["look_axis"],
            **bands,
        )


def network_input(batch: dict, spec: InputSpec) -> dict:
    """The batch without augmentation: sar and eo, if present, standardised [B, H, W, C] float32."""
    if "sar" in batch:
        sar = filtered(batch["sar"].astype(jnp.float32), batch["sar_valid"], spec.normalisation)
        batch = batch | {"sar": sar}
    return _standardise(batch, spec)


def training_input(batch: dict, spec: InputSpec) -> dict:
    """The batch with augmentation, standardised."""
    options = spec.augmentation
    keys = augment.sample_keys(batch["key"])
    sar = batch["sar"].astype(jnp.float32)
    if options.speckle_looks:
        sar = augment.speckle(keys, sar, options.speckle_looks)
    sar = filtered(sar, batch["sar_valid"], spec.normalisation)
    if options.sar_gain_db:
        sar = augment.sar_gain(keys, sar, options.sar_gain_db)
    if options.eo_gain:
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
