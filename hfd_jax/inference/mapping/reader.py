"""Opens georeferenced scenes, matches their bands and units with a network's, and reads them in windows."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import rasterio.windows

from hfd_jax.core.errors import DataError, nearest
from hfd_jax.data.cautions import SAME_SIZE
from hfd_jax.data.facts import DB_RANGE, BandStatistics
from hfd_jax.data.rasters import (
    TAG,
    data_bands,
    grid_of,
    is_complex,
    open_raster,
    pixel_metres,
    read_pixels,
    scale_tags,
)
from hfd_jax.data.units import linear_to_db
from hfd_jax.inference.restore import Network

Item = TypeVar("Item")
SMALLEST_PIXEL = 0.01  # metres; version 0.1 recorded degrees for data in longitude and latitude


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The input that a network was trained on.

    Attributes:
      title: of the network.
      sensor: "sar" or "eo".
      bands: names, in order.
      unit: "db" or "raw" of SAR; of EO the NumPy name of the stored type.
      statistics: of the training pixels of these bands.
      pixel_size: of the training data, metres; 0 if unknown.
    """

    title: str
    sensor: str
    bands: tuple[str, ...]
    unit: str
    statistics: BandStatistics
    pixel_size: float = 0.0

    @classmethod
    def of(cls, network: Network) -> "Wanted":
        record, sensor = network.record, network.sensor
        unit = record["facts"]["sar_unit" if sensor == "sar" else "eo_dtype"]
        bands, statistics = tuple(record["bands"][sensor]), getattr(network.inputs, sensor)
        return cls(record["title"], sensor, bands, unit, statistics, record["facts"].get("pixel_size", 0.0))


class Advice(NamedTuple):
    """How a user can correct an image whose values do not fit, for messages.

    Attributes:
      linear: if it is in linear power.
      nodata: if "{}" in this text, a value, means no data.
      zeros: if 0 means no data.
    """

    linear: str
    nodata: str
    zeros: str


SCENE_ADVICE = Advice(
    linear="--sar_unit=linear converts a scene in linear power",
    nodata="--nodata={:g}",
    zeros="pass --nodata=0 if they mean no data",
)


class Image(Protocol):
    """An image in a network's unit that is read in windows: a `Scene`, or an array in memory.

    Attributes:
      path: its name in messages.
      shape: (rows, columns).
      bands: one entry for each band that is read.
      wanted: the network's input.
      unit: of the values before they are converted to the network's unit.
      notes: remarks for the user, collected while it is read.
      strange: whether values outside the range of backscatter were read; their pixels count as invalid.
      advice: for messages.
    """

    path: str
    shape: tuple[int, int]
    bands: Sequence[Any]
    wanted: Wanted
    unit: str
    notes: list[str]
    strange: bool
    advice: Advice

    def values(self, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads the part of a window inside the image: ([h, w, bands] in the network's unit, valid [h, w] bool)."""


@dataclasses.dataclass(frozen=True)
class Interpretation:
    """How a user describes the scenes.

    Attributes:
      sar_unit: "db", "linear" or "raw"; "" for the unit that the network was trained on.
      nodata: value of pixels without data, in all bands; None for each scene's own nodata tag.
      bands: numbers (from 1) or names of the bands to read; () to match them by name, or else take all in order.
    """

    sar_unit: str = ""
    nodata: float | None = None
    bands: tuple[str, ...] = ()


class Scene:
    """A raster as a network reads it, an `Image`; a context manager.

    Args:
      path: of the raster.
      wanted: the network's input.
      described: how the user describes the raster.

    Attributes:
      bands: the raster's bands that are read, from 1.
      nodata: the value in all bands of a pixel without data; None if there is no such value.
      georeference: "crs" with "transform" or "gcps", as rasterio.open takes them for writing.

    Raises:
      DataError: the raster cannot be read, or its bands, type or unit do not fit the network.
    """

    advice = SCENE_ADVICE

    def __init__(self, path: str, wanted: Wanted, described: Interpretation):
        self.path, self.wanted = path, wanted
        self.unit = check_unit(wanted, described.sar_unit)
        self._raster = open_raster(path)
        try:
            self.notes: list[str] = []
            self.bands = self._choose_bands(described.bands)
            self._check_types()
        except DataError:
            self._raster.close()
            raise
        self.shape: tuple[int, int] = self._raster.shape
        self.georeference = self._georeference()
        self.strange = False
        self.nodata = self._raster.nodata if described.nodata is None else described.nodata
        self._nodata = TAG if described.nodata is None else described.nodata
        self._compare_pixel_size()

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *error: object) -> None:
        self._raster.close()

    def identity(self) -> dict[str, Any]:
        """What distinguishes this file from another one of the same name."""
        status = os.stat(self.path)
        return {"bytes": status.st_size, "changed": status.st_mtime_ns}

    def values(self, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """As of `Image`. Raises DataError if the file is damaged."""
        height, width = min(height, self.shape[0] - row), min(width, self.shape[1] - col)
        window = rasterio.windows.Window(col, row, width, height)
        image, valid, empty = read_pixels(self._raster, window, self.bands, self._nodata)
        valid &= ~empty
        if self.wanted.sensor == "eo":
            return image.astype(self.wanted.unit), valid
        image = image.astype(np.float32, copy=False)
        if self.unit == "linear":
            image = linear_to_db(np.where(valid[..., None], image, 1.0)).astype(np.float32)
        return image, valid

    def _choose_bands(self, chosen: tuple[str, ...]) -> list[int]:
        """The bands to read, from 1: those the user chose, or those with the right names, or all of them in order."""
        wanted, names = self.wanted.bands, [name or "" for name in self._raster.descriptions]
        if len(data_bands(self._raster)) == len(wanted):  # an alpha band follows
            names = names[: len(wanted)]
        if chosen:
            if len(chosen) != len(wanted):
                raise DataError(f"--bands={','.join(chosen)} are {len(chosen)} bands; {self._needs()}")
            return [self._band(text, names) for text in chosen]
        known = [name.lower() for name in names]
        places = [known.index(band.lower()) + 1 if band.lower() in known else 0 for band in wanted]
        if all(places):
            return places
        if any(places):
            raise DataError(
                f"{self.path}: has no band named {wanted[places.index(0)]!r} among {', '.join(names)}; "
                f"{self._needs()}: choose them with --bands=1,2,... (numbers or names)"
            )
        if len(names) != len(wanted):
            listed = f" ({', '.join(names)})" if any(names) else ""
            raise DataError(
                f"{self.path}: {len(names)} bands{listed}; {self._needs()}: choose them with --bands=1,2,... "
                "(numbers or names)"
            )
        self.notes.append(f"its bands are taken as {', '.join(wanted)}, in this order (they are not named so)")
        return list(range(1, len(wanted) + 1))

    def _band(self, text: str, names: list[str]) -> int:
        if text in names:
            return names.index(text) + 1
        if text.isdigit() and 1 <= int(text) <= len(names):
            return int(text)
        choices = nearest(text, [*range(1, len(names) + 1), *(name for name in names if name)])
        raise DataError(f"{self.path}: --bands names {text!r}; {choices}")

    def _needs(self) -> str:
        return f"{self.wanted.title} reads {len(self.wanted.bands)} ({', '.join(self.wanted.bands)})"

    def _check_types(self) -> None:
        for band in self.bands:
            if is_complex(self._raster.dtypes[band - 1]):
                raise DataError(f"{self.path}: band {band} is complex; expected intensity, in the units of --sar_unit")
            found, wanted = np.dtype(self._raster.dtypes[band - 1]), self.wanted.unit
            tags = scale_tags(self._raster, [band])
            if self.wanted.sensor == "eo" and wanted != "float32" and tags:
                raise DataError(
                    f"{self.path}: band {band} has the scale tag {tags[0][0]:g} and the offset tag {tags[1][0]:g}; "
                    f"{self.wanted.title} was trained on stored {wanted} values: remove the tags if the stored values "
                    "have the scale of the training data (gdal_edit.py -unsetscale -unsetoffset)"
                )
            if self.wanted.sensor == "eo" and wanted != "float32" and not np.can_cast(found, wanted):
                raise DataError(f"{self.path}: band {band} is {found}; {self.wanted.title} was trained on {wanted}")

    def _compare_pixel_size(self) -> None:
        trained = self.wanted.pixel_size
        try:
            found = pixel_metres(grid_of(self._raster))
        except DataError:  # no plain grid: the map has the scene's own control points
            return
        if found > 0 and trained >= SMALLEST_PIXEL and not 1 / SAME_SIZE <= found / trained <= SAME_SIZE:
            self.notes.append(
                f"its pixels measure {found:.3g} m, those of the training data {trained:.3g} m; expected a similar "
                "size: resample the scene (gdalwarp -tr)"
            )

    def _georeference(self) -> dict[str, Any]:
        gcps, crs = self._raster.gcps
        if gcps and self._raster.transform.is_identity:
            return {"crs": crs, "gcps": gcps}
        if self._raster.crs is None:
            self.notes.append("it has no CRS, nor does its map")
        return {"crs": self._raster.crs, "transform": self._raster.transform}


def read_padded(image: Image, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads a window that may reach beyond the image: ([height, width, bands], valid [height, width] bool).

    Raises:
      DataError: the image's file is damaged.
    """
    values, valid = image.values(row, col, height, width)
    if image.wanted.sensor == "sar" and image.wanted.unit == "db":
        strange = valid & ~((values >= DB_RANGE[0]) & (values <= DB_RANGE[1])).all(-1)
        image.strange |= bool(strange.any())
        valid &= ~strange
    beyond = [(0, height - values.shape[0]), (0, width - values.shape[1])]
    if beyond != [(0, 0), (0, 0)]:
        values, valid = np.pad(values, [*beyond, (0, 0)]), np.pad(valid, beyond)
    return values, valid


def check_unit(wanted: Wanted, unit: str) -> str:
    """Returns the unit of the scenes' values.

    Args:
      wanted: the network's input.
      unit: as the user says; "" for the network's own.

    Raises:
      DataError: values in this unit cannot be converted to the network's.
    """
    if wanted.sensor == "eo":
        if unit:
            raise DataError(f"--sar_unit={unit}: {wanted.title} reads optical scenes")
        return wanted.unit
    if not unit or unit == wanted.unit:
        return wanted.unit
    if wanted.unit == "db" and unit == "linear":
        return unit
    raise DataError(
        f"--sar_unit={unit}: {wanted.title} was trained on SAR in unit {wanted.unit!r}; there is no conversion"
    )


def sample(scene: Image, patches: int = 8, edge: int = 64) -> np.ndarray:
    """Returns valid pixels [N, bands] from patches x patches places spread over a scene.

    If these hold none, it reads block by block until it finds some: an empty result means that no pixel is valid.
    """
    corners = [np.unique(np.linspace(0, max(length - edge, 0), patches).astype(int)).tolist() for length in scene.shape]
    found = []
    for row in corners[0]:
        for col in corners[1]:
            image, valid = scene.values(row, col, edge, edge)
            found.append(image[valid])
    if any(map(len, found)):
        return np.concatenate(found)
    block = 1024
    for row in range(0, scene.shape[0], block):
        for col in range(0, scene.shape[1], block):
            image, valid = scene.values(row, col, block, block)
            if valid.any():
                return image[valid]
    return np.zeros((0, len(scene.bands)))


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yields the items; a thread prepares the next one while the caller works on the current one."""
    items, end = iter(items), object()
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        coming = executor.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = executor.submit(next, items, end)
            yield item
