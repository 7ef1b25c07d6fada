"""Turns stored values into network input on the device: optional filter, optional clip, standardisation, nodata."""

import dataclasses

import jax
import jax.numpy as jnp

from hfd_jax.data.facts import BandStatistics
from hfd_jax.data.units import db_to_linear, linear_to_db

SAR_FILTERS = ("none", "lee")


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """How stored values become network input; identical in training, evaluation and inference.

    Attributes:
      sar_filter: "none" or "lee" (7 x 7).
      sar_looks: number of looks of the stored images, for the filter.
      clip: first clip values to the 1st and 99th percentile of the training pixels.
      sar_unit: unit of the stored values, "db" or "raw".
    """

    sar_filter: str = "none"
    sar_looks: float = 1.0
    clip: bool = False
    sar_unit: str = "db"


def lee_filter(power, valid, window: int = 7, looks: float = 1.0):
    """Lee's adaptive speckle filter (Lee 1980): m + k (x - m), k = max(0, 1 - Cu^2 / Cx^2), Cu^2 = 1 / looks.

    Args:
      power: linear intensity [B, H, W, C], float32.
      valid: [B, H, W] bool; invalid pixels are not averaged.
      window: edge of the square window, pixels.
      looks: number of looks of the image.

    Returns:
      [B, H, W, C] float32.
    """

    def box(x):
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, window, window, 1), (1, 1, 1, 1), "SAME")

    weight = valid[..., None].astype(jnp.float32)
    power = jnp.where(valid[..., None], power, 0.0)  # NaN times 0 is NaN
    count = jnp.maximum(box(weight), 1.0)
    mean = box(power * weight) / count
    variance = jnp.maximum(box(power**2 * weight) / count - mean**2, 0.0)
    # Total variance of speckled signal = signal + speckle; k keeps the part that is signal.
    signal = variance - mean**2 / looks
    return mean + jnp.clip(signal / jnp.maximum(variance, 1e-12), 0.0, 1.0) * (power - mean)


def standardise_bands(image, valid, statistics: BandStatistics, clip: bool = False):
    """(x - mean) / std per band; invalid pixels become 0, the mean.

    Args:
      image: [B, H, W, C] of any type.
      valid: [B, H, W] bool.
      statistics: statistics of the C bands.
      clip: first clip to [low, high].

    Returns:
      [B, H, W, C] float32.
    """
    x = image.astype(jnp.float32)
    if clip:
        x = jnp.clip(x, jnp.array(statistics.low), jnp.array(statistics.high))
    x = (x - jnp.array(statistics.mean)) / jnp.array(statistics.std)
    return jnp.where(valid[..., None], x, 0.0)


def filtered(sar, valid, options: Normalisation):
    """Applies the chosen speckle filter to stored SAR values [B, H, W, C]."""
    if options.sar_filter == "none":
        return sar
    if options.sar_unit == "raw":
        return lee_filter(sar, valid, looks=options.sar_looks)
    return linear_to_db(lee_filter(db_to_linear(sar, jnp), valid, looks=options.sar_looks), jnp)
