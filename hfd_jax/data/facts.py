"""What is known about a data set: its facts, declared beside each builder, and its statistics, measured once.

Both are stored as JSON with the prepared data set and travel with every checkpoint, so that a model is never fed with
other bands, units or statistics than it was trained on.
"""

import dataclasses
from typing import Any

import numpy as np

from hfd_jax.errors import DataError
from hfd_jax.losses import IGNORE_LABEL

SAR_UNITS = ("db", "linear", "raw")
LOOK_AXES = ("x", "y", "any")
SPLITS = ("train", "unlabelled", "validation", "test")
# Calibrated backscatter outside this range is a wrong unit or a broken file, not a target.
DB_RANGE = (-80.0, 60.0)


@dataclasses.dataclass(frozen=True)
class Facts:
    """Declared facts of a data set of paired tiles.

    Attributes:
      name: of the data set.
      sar_bands, eo_bands: names in stored order.
      eo_dtype: NumPy name of the stored optical type.
      sar_unit: "db" (calibrated, decibel) or "raw" (any other scale); linear power is stored in dB.
      class_names: class k of the stored label is class_names[k]; IGNORE_LABEL (255) is outside of them.
      class_colours: one (r, g, b) of 0 to 255 per class.
      look_axis: image axis along which the radar looks, "x" or "y"; "any" where it does not matter. A flip along this
        axis would turn layover and shadow round.
      pixel_size: edge of a pixel, metres; 0 if unknown.
    """

    name: str
    sar_bands: tuple[str, ...]
    eo_bands: tuple[str, ...]
    eo_dtype: str
    sar_unit: str
    class_names: tuple[str, ...]
    class_colours: tuple[tuple[int, int, int], ...]
    look_axis: str
    pixel_size: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Facts":
        lists = {key: tuple(values[key]) for key in ("sar_bands", "eo_bands", "class_names")}
        colours = tuple(tuple(colour) for colour in values["class_colours"])
        return cls(**{**values, **lists, "class_colours": colours})


@dataclasses.dataclass(frozen=True)
class BandStatistics:
    """Per band over valid training pixels: mean, std, and the 1st and 99th percentile (of a sample), stored units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def select(self, index: tuple[int, ...]) -> "BandStatistics":
        return BandStatistics(
            **{key: tuple(values[i] for i in index) for key, values in dataclasses.asdict(self).items()}
        )


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Measured over the training tiles, with and without label. class_pixels: labelled pixels per class."""

    sar: BandStatistics
    eo: BandStatistics
    class_pixels: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Statistics":
        bands = {
            sensor: BandStatistics(**{key: tuple(numbers) for key, numbers in values[sensor].items()})
            for sensor in ("sar", "eo")
        }
        return cls(class_pixels=tuple(values["class_pixels"]), **bands)


class _BandAccumulator:
    def __init__(self, bands: int, sample_per_tile: int = 256):
        self.count, self.sum, self.squares = 0, np.zeros(bands), np.zeros(bands)
        self.sample, self.sample_per_tile = [], sample_per_tile

    def add(self, image: np.ndarray, valid: np.ndarray):
        pixels = image[valid].astype(np.float64)
        self.count += len(pixels)
        self.sum += pixels.sum(0)
        self.squares += (pixels**2).sum(0)
        self.sample.append(pixels[:: max(1, len(pixels) // self.sample_per_tile)].astype(np.float32))

    def finish(self) -> BandStatistics:
        if not self.count:
            raise DataError("the training tiles hold no valid pixel")
        mean = self.sum / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
        low, high = np.percentile(np.concatenate(self.sample), (1, 99), axis=0)
        # A constant band says nothing and must not be blown up: std 1 turns it into zeros.
        std = np.where(std > 1e-6 * (1 + np.abs(mean)), std, 1.0)
        return BandStatistics(*(tuple(float(v) for v in values) for values in (mean, std, low, high)))


class StatisticsAccumulator:
    """Collects `Statistics` in one pass over the training tiles."""

    def __init__(self, facts: Facts):
        self._sar, self._eo = _BandAccumulator(len(facts.sar_bands)), _BandAccumulator(len(facts.eo_bands))
        self._class_pixels = np.zeros(len(facts.class_names), np.int64)

    def add(self, sar, eo, label, sar_valid, eo_valid):
        self._sar.add(sar, sar_valid)
        self._eo.add(eo, eo_valid)
        self._class_pixels += np.bincount(label[label != IGNORE_LABEL].ravel(), minlength=len(self._class_pixels))

    def finish(self) -> Statistics:
        return Statistics(self._sar.finish(), self._eo.finish(), tuple(int(n) for n in self._class_pixels))
