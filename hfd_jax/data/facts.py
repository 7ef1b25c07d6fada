"""Facts of a data set, declared beside each builder, and its statistics, measured once.

Both are stored as JSON with the prepared data set and with every checkpoint, so that a model only ever receives the
bands, units and statistics of its training.
"""

import dataclasses
from typing import Any

import numpy as np

from hfd_jax.core.errors import DataError
from hfd_jax.core.labels import IGNORE_LABEL

SAR_UNITS = ("db", "linear", "raw")
LOOK_AXES = ("x", "y", "any")
SPLITS = ("train", "unlabelled", "validation", "test")
# Backscatter outside this range means a wrong unit or a damaged file.
DB_RANGE = (-80.0, 60.0)
BRIGHTEST_DB = 30.0  # limit of the 99th percentile; single corner reflectors may be brighter
# Numbers of pixels from which the percentiles are computed.
SAMPLE_PER_PART, SAMPLE_IN_ALL = 2**14, 2**19
SAMPLING = 2  # version of the sample; unfinished preparations with another one start again


@dataclasses.dataclass(frozen=True)
class Facts:
    """Declared facts of a data set of paired tiles.

    Attributes:
      name: name of the data set.
      sar_bands, eo_bands: names in stored order.
      eo_dtype: NumPy name of the stored optical type.
      sar_unit: "db" (calibrated, decibel) or "raw" (any other scale); linear power is stored in dB.
      class_names: class k of the stored label is class_names[k]; IGNORE_LABEL (255) marks ignored pixels.
      class_colours: one (r, g, b) of 0 to 255 per class.
      look_axis: image axis along which the radar looks, "x" or "y"; "any" if it does not matter. A flip along this
        axis would reverse layover and shadow.
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

    def __post_init__(self):
        if len(self.class_names) > IGNORE_LABEL:
            raise DataError(
                f"{self.name}: has {len(self.class_names)} classes; expected at most {IGNORE_LABEL}, since the stored "
                f"value {IGNORE_LABEL} means unlabelled"
            )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Facts":
        lists = {key: tuple(values[key]) for key in ("sar_bands", "eo_bands", "class_names")}
        colours = tuple(tuple(colour) for colour in values["class_colours"])
        return cls(**{**values, **lists, "class_colours": colours})


def check_colours(facts: Facts, where: str, advice: str = "") -> None:
    """Raises DataError, which begins with `where`, if a class has a colour that no picture can show."""
    for name, colour in zip(facts.class_names, facts.class_colours, strict=False):
        if len(colour) != 3 or not all(isinstance(part, int | float) and 0 <= part <= 255 for part in colour):
            raise DataError(
                f"{where}: the colour of class {name!r} is {list(colour)}; expected red, green and blue, each 0 to 255"
                + (f". {advice}" if advice else "")
            )


@dataclasses.dataclass(frozen=True)
class BandStatistics:
    """Statistics per band over valid training pixels, in stored units.

    Attributes:
      mean, std: over all pixels.
      low, high: 1st and 99th percentile, of a sample.
    """

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
    """Sums over valid pixels, and a random sample of them for the percentiles; those of several shards can be merged.

    Every pixel has the same chance to be in the sample, whatever the sizes of the tiles. The sample depends on the data
    alone.
    """

    def __init__(self, bands: int):
        self.count, self.sum, self.squares = 0, np.zeros(bands), np.zeros(bands)
        self._samples: list[np.ndarray] = []
        self._every = 1

    def add(self, image: np.ndarray, valid: np.ndarray):
        # Selecting costs more than summing, and most tiles are valid throughout.
        pixels = image.reshape(-1, image.shape[-1]) if valid.all() else image[valid]
        self._keep(_thinned(pixels, self._every, self.count).astype(np.float32))
        self.count += len(pixels)
        self.sum += pixels.sum(0, dtype=np.float64)
        self.squares += np.einsum("ij,ij->j", pixels, pixels, dtype=np.float64)

    def merge(self, count, total, squares, sample, every):
        common = max(self._every, int(every))
        self._samples = [_thinned(self._sample(), common // self._every, self.count)]
        self._every = common
        self._keep(_thinned(sample, common // int(every), self.count))
        self.count += int(count)
        self.sum += total
        self.squares += squares

    def _keep(self, sample: np.ndarray):
        self._samples.append(sample)
        if sum(map(len, self._samples)) > SAMPLE_IN_ALL:
            everything, every = _limited(self._sample(), SAMPLE_IN_ALL, self.count)
            self._samples, self._every = [everything], self._every * every

    def _sample(self) -> np.ndarray:
        return np.concatenate(self._samples) if self._samples else np.zeros((0, len(self.sum)), np.float32)

    def to_arrays(self) -> dict[str, Any]:
        sample, every = _limited(self._sample(), SAMPLE_PER_PART, self.count)
        values = {"count": self.count, "sum": self.sum, "squares": self.squares, "sample": sample}
        return values | {"every": self._every * every}

    def finish(self) -> BandStatistics:
        if not self.count:
            raise DataError("the training tiles contain no valid pixel")
        mean = self.sum / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
        low, high = np.percentile(self._sample(), (1, 99), axis=0)
        # A constant band carries no information: std 1 maps it to zeros instead of amplifying rounding.
        std = np.where(std > 1e-6 * (1 + np.abs(mean)), std, 1.0)
        return BandStatistics(*(tuple(float(v) for v in values) for values in (mean, std, low, high)))


def _thinned(pixels: np.ndarray, every: int, seed: int) -> np.ndarray:
    """A random share 1 / `every` of the rows."""
    if every == 1 or not len(pixels):
        return pixels
    rng = np.random.default_rng(seed)
    return pixels[rng.integers(len(pixels), size=int(len(pixels) / every + rng.random()))]


def _limited(pixels: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, int]:
    """(a random share 1 / `every` of at most about `most` rows, `every`, a power of 2)."""
    every = 1
    while len(pixels) > most * every:
        every *= 2
    return _thinned(pixels, every, seed), every


class StatisticsAccumulator:
    """Collects `Statistics` in one pass over tiles; accumulators of parts of a data set can be merged."""

    def __init__(self, facts: Facts):
        self._bands = {"sar": _BandAccumulator(len(facts.sar_bands)), "eo": _BandAccumulator(len(facts.eo_bands))}
        self._class_pixels = np.zeros(len(facts.class_names), np.int64)

    def add(self, sar, eo, label, sar_valid, eo_valid):
        self._bands["sar"].add(sar, sar_valid)
        self._bands["eo"].add(eo, eo_valid)
        self._class_pixels += np.bincount(label[label != IGNORE_LABEL].ravel(), minlength=len(self._class_pixels))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays for `merge`."""
        arrays = {"class_pixels": self._class_pixels}
        for sensor, part in self._bands.items():
            arrays |= {f"{sensor}_{key}": np.asarray(value) for key, value in part.to_arrays().items()}
        return arrays

    def merge(self, arrays: dict[str, np.ndarray]):
        self._class_pixels += arrays["class_pixels"]
        for sensor, part in self._bands.items():
            part.merge(*(arrays[f"{sensor}_{key}"] for key in ("count", "sum", "squares", "sample", "every")))

    def finish(self) -> Statistics:
        return Statistics(
            self._bands["sar"].finish(), self._bands["eo"].finish(), tuple(int(n) for n in self._class_pixels)
        )


def check_statistics(facts: Facts, statistics: Statistics) -> None:
    """Raises DataError if the measured SAR values contradict the declared unit."""
    if facts.sar_unit != "db":
        return
    for band, low, high in zip(facts.sar_bands, statistics.sar.low, statistics.sar.high, strict=True):
        found = f"{facts.name}: SAR band {band} has values from {low:.4g} to {high:.4g} (1st to 99th percentile)"
        if low >= 0:
            raise DataError(f"{found}; backscatter in dB is mostly negative. Is the unit 'linear' or 'raw'?")
        if high > BRIGHTEST_DB:
            raise DataError(f"{found}; calibrated backscatter stays below {BRIGHTEST_DB:g} dB. Is the unit 'raw'?")
