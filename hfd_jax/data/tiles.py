"""Paired tiles, the interface of raw data sets, and the check of a tile against the data set's facts."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from hfd_jax.core.errors import DataError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data.facts import DB_RANGE, Facts


@dataclasses.dataclass
class Tile:
    """One pair on one grid.

    Attributes:
      id: unique name within the data set.
      sar: [H, W, bands] float32, dB or raw; any value where not sar_valid.
      eo: [H, W, bands] of the facts' eo_dtype.
      label: [H, W] uint8 class index or IGNORE_LABEL; None for an unlabelled pair.
      sar_valid, eo_valid: [H, W] bool, False where the sensor has no data.
      crs: text understood by rasterio, or "".
      transform: six affine coefficients (a, b, c, d, e, f) from pixel to CRS.
      rotated: whether the arrays are rotated by 180 degrees, so that the radar looks the same way in all tiles;
        `transform` belongs to the rotated arrays. Rotate a prediction back to show it north up.
    """

    id: str
    sar: np.ndarray
    eo: np.ndarray
    label: np.ndarray | None
    sar_valid: np.ndarray
    eo_valid: np.ndarray
    crs: str = ""
    transform: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    rotated: bool = False


def rotate(tile: Tile) -> Tile:
    """The tile rotated by 180 degrees, all arrays and the georeference together."""
    height, width = tile.sar.shape[:2]
    arrays = {name: getattr(tile, name) for name in ("sar", "eo", "label", "sar_valid", "eo_valid")}
    turned = {name: None if array is None else array[::-1, ::-1] for name, array in arrays.items()}
    a, b, c, d, e, f = tile.transform
    transform = (-a, -b, c + a * width + b * height, -d, -e, f + d * width + e * height)
    return dataclasses.replace(tile, **turned, transform=transform, rotated=not tile.rotated)


def north_up(tile: Tile) -> Tile:
    """The tile with its first row in the north and its first column in the west, as in maps.

    Otherwise the radar would look the other way in it. A tile without CRS is left as it is.
    """
    a, b, c, d, e, f = tile.transform
    height, width = tile.sar.shape[:2]
    if not tile.crs or (e <= 0 and a >= 0):
        return tile
    rows, columns = slice(None, None, -1 if e > 0 else 1), slice(None, None, -1 if a < 0 else 1)
    arrays = {name: getattr(tile, name) for name in ("sar", "eo", "label", "sar_valid", "eo_valid")}
    turned = {name: None if array is None else array[rows, columns] for name, array in arrays.items()}
    if e > 0:
        b, c, e, f = -b, c + b * height, -e, f + e * height
    if a < 0:
        a, c, d, f = -a, c + a * width, -d, f + d * width
    return dataclasses.replace(tile, **turned, transform=(a, b, c, d, e, f))


class TileSource(Protocol):
    """A raw data set; it must be picklable, since other processes read from it.

    Attributes:
      name: of the prepared data set.
      facts: declared facts of the data set.
      settings: JSON-ready; every other setting that affects what is read. A prepared data set with other settings is
        not reused.
      left_out: reason -> number of tiles that belong to no split.
      notes: remarks for the user.
    """

    name: str
    facts: Facts
    settings: dict[str, Any]
    left_out: dict[str, int]
    notes: list[str]

    def keys(self) -> dict[str, Sequence[Any]]:
        """What `read` takes, per split of `facts.SPLITS`; a split may be empty or missing."""

    def read(self, key: Any) -> Tile:
        """Reads one tile. Raises DataError if a file is missing, damaged or contradicts the description."""


class Relisted:
    """A source that drops its file lists when it is pickled for another process.

    Attributes:
      relisted: names of the cached properties to drop; they are recomputed on demand.
    """

    relisted: ClassVar[tuple[str, ...]] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in self.relisted}


def check_tile(tile: Tile, facts: Facts) -> None:
    """Raises DataError if a tile contradicts the facts: sizes, bands, types, value range, class index."""
    height, width = tile.sar.shape[:2]
    expected = {
        "sar": ((height, width, len(facts.sar_bands)), "float32"),
        "eo": ((height, width, len(facts.eo_bands)), facts.eo_dtype),
        "sar_valid": ((height, width), "bool"),
        "eo_valid": ((height, width), "bool"),
    }
    if tile.label is not None:
        expected["label"] = ((height, width), "uint8")
    for name, (shape, dtype) in expected.items():
        array = getattr(tile, name)
        if array.shape != shape or array.dtype != np.dtype(dtype):
            found = f"{array.dtype}{list(array.shape)}"
            raise DataError(f"tile {tile.id}: {name} is {found}; expected {dtype}{list(shape)}")
    for name, valid in (("sar", tile.sar_valid), ("eo", tile.eo_valid)):
        image = getattr(tile, name)
        if image.dtype.kind == "f" and not np.isfinite(image).all(-1)[valid].all():
            raise DataError(f"tile {tile.id}: {name} holds NaN or infinite values where it is marked valid")
    if facts.sar_unit == "db" and tile.sar_valid.any():
        low, high = tile.sar[tile.sar_valid].min(), tile.sar[tile.sar_valid].max()
        if low < DB_RANGE[0] or high > DB_RANGE[1]:
            raise DataError(
                f"tile {tile.id}: SAR values from {low:.4g} to {high:.4g}; backscatter in dB lies within "
                f"{DB_RANGE[0]:g} to {DB_RANGE[1]:g}. Is the unit 'linear' or 'raw'?"
            )
    if tile.label is not None:
        present = np.flatnonzero(np.bincount(tile.label.ravel(), minlength=256))
        wrong = [int(k) for k in present if k >= len(facts.class_names) and k != IGNORE_LABEL]
        if wrong:
            classes = f"classes are 0 to {len(facts.class_names) - 1}, or {IGNORE_LABEL}"
            raise DataError(f"tile {tile.id}: label holds {wrong}; {classes}")
