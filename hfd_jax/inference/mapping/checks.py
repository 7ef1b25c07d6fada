"""Compares a scene's values with those that a network was trained on, before anything is computed."""

import numpy as np

from hfd_jax.core.errors import DataError
from hfd_jax.data.facts import BRIGHTEST_DB, DB_RANGE
from hfd_jax.data.units import linear_to_db
from hfd_jax.inference.mapping.reader import Image, sample


def check_values(scene: Image) -> bool:
    """Checks a sample of the scene's pixels.

    Raises:
      DataError: the values have another unit or scale; the message says what to do.

    Returns:
      Whether the scene has any valid pixel.
    """
    pixels = sample(scene)
    if not len(pixels):
        return False
    zeros = float((pixels == 0).all(-1).mean())
    if zeros > 0.01:
        scene.notes.append(f"{zeros:.0%} of its pixels are exactly 0 and count as data; {scene.advice.zeros}")
    low, high = np.percentile(pixels, (1, 99), axis=0)
    if scene.wanted.unit == "db":
        _check_decibel(scene, float(low.min()), float(low.max()), float(high.max()))
    else:
        _check_range(scene, low, high)
    return True


def _check_decibel(scene: Image, lowest: float, highest_low: float, high: float) -> None:
    """lowest, highest_low: extremes of the bands' 1st percentiles; high: the largest of their 99th percentiles."""
    found = f"{scene.path}: SAR values from {lowest:.4g} to {high:.4g} (1st and 99th percentile)"
    if scene.unit == "linear":
        if lowest <= linear_to_db(0.0):
            raise DataError(
                f"{scene.path}: more than 1 % of its values are 0 or less; --sar_unit=linear is a power, above 0: is "
                "the scene already in dB, or does 0 mean no data (--nodata=0)?"
            )
        if highest_low >= 0 or high > BRIGHTEST_DB:
            raise DataError(
                f"{found} in dB after --sar_unit=linear; calibrated backscatter is mostly negative and below "
                f"{BRIGHTEST_DB:g} dB: the scene is not calibrated linear power"
            )
        return
    trained = f"{scene.wanted.title} was trained on dB"
    if lowest < DB_RANGE[0]:
        raise DataError(
            f"{found}; {trained}, which stays above {DB_RANGE[0]:g}: does {lowest:g} mean no data "
            f"({scene.advice.nodata.format(lowest)}), or is the scene in another unit?"
        )
    if highest_low >= 0:
        raise DataError(f"{found}; {trained}, which is mostly negative: {scene.advice.linear}")
    if high > BRIGHTEST_DB:
        raise DataError(f"{found}; {trained}, and calibrated backscatter stays below {BRIGHTEST_DB:g} dB")


def _check_range(scene: Image, low: np.ndarray, high: np.ndarray) -> None:
    """Raises DataError if every band lies outside the training range; a single band may, such as NIR over a lake."""
    trained = scene.wanted.statistics
    if ((high >= np.array(trained.low)) & (low <= np.array(trained.high))).any():
        return
    band = scene.wanted.bands[0]
    raise DataError(
        f"{scene.path}: the values of band {band} range from {low[0]:.4g} to {high[0]:.4g} (1st to 99th percentile); "
        f"in no band do they overlap the values that {scene.wanted.title} was trained on ({band}: "
        f"{trained.low[0]:.4g} to {trained.high[0]:.4g}): expected the same unit ({scene.wanted.unit}) and scale"
    )
