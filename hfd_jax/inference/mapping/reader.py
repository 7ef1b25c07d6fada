"""Large georeferenced scenes: opened, matched with what a network reads, and read in windows."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import rasterio.windows
from rasterio.enums import MaskFlags

from hfd_jax.core.errors import DataError, nearest
from hfd_jax.data.facts import DB_RANGE, BandStatistics
from hfd_jax.data.rasters import open_raster, read_window, reading, valid_pixels
from hfd_jax.data.units import linear_to_db
from hfd_jax.inference.restore import Network

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a network reads.

    Attributes:
      title: of the network.
      sensor: "sar" or "eo".
      bands: names, in order.
      unit: "db" or "raw" of SAR; of EO the NumPy name of the stored type.
      statistics: of the training pixels of these bands.
    """

    title: str
    sensor: str
    bands: tuple[str, ...]
    unit: str
    statistics: BandStatistics

    @classmethod
    def of(cls, network: Network) -> "Wanted":
        record, sensor = network.record, network.sensor
        unit = record["facts"]["sar_unit" if sensor == "sar" else "eo_dtype"]
        return cls(record["title"], sensor, tuple(record["bands"][sensor]), unit, getattr(network.inputs, sensor))


@dataclasses.dataclass(frozen=True)
class Interpretation:
    """What a user says about scenes.

    Attributes:
      sar_unit: "db", "linear" or "raw"; "": what the network was trained on.
      nodata: value of pixels without data, in all bands; None: each scene's own nodata tag.
      bands: numbers (from 1) or descriptions of the bands to take; (): by name, else all in order.
    """

    sar_unit: str = ""
    nodata: float | None = None
    bands: tuple[str, ...] = ()


class Scene:
    """A raster as a network reads it; a context manager.

    Args:
      path: of the raster.
      wanted: by the network.
      said: about it.

    Attributes:
      path, shape: its file; (rows, columns).
      bands: the raster's bands that are read, from 1.
      nodata: the value that all bands of a pixel without data have; None: no value says so.
      georeference: "crs" with "transform" or "gcps", as rasterio.open takes them for writing.
      notes: what a user should know of how it is read.
      strange: whether values were read that cannot be backscatter; their pixels count as invalid.

    Raises:
      DataError: it cannot be read, its bands or its type do not fit, or the unit that is said is not convertible.
    """

    def __init__(self, path: str, wanted: Wanted, said: Interpretation):
        self.path, self.wanted = path, wanted
        self.unit = check_unit(wanted, said.sar_unit)
        self._raster = open_raster(path)
        try:
            self.notes: list[str] = []
            self.bands = self._choose_bands(said.bands)
            self._check_types()
        except DataError:
            self._raster.close()
            raise
        self.shape: tuple[int, int] = self._raster.shape
        self.georeference = self._georeference()
        self.strange = False
        self.nodata = self._raster.nodata if said.nodata is None else said.nodata
        self._masked = [MaskFlags.per_dataset in self._raster.mask_flag_enums[band - 1] for band in self.bands]

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *error: object) -> None:
        self._raster.close()

    def identity(self) -> dict[str, Any]:
        """What tells this file from another one of its name."""
        status = os.stat(self.path)
        return {"bytes": status.st_size, "changed": status.st_mtime_ns}

    def values(self, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """([h, w, bands] in the network's unit, valid [h, w] bool) of the part of a window that lies in the scene."""
        height, width = min(height, self.shape[0] - row), min(width, self.shape[1] - col)
        window = rasterio.windows.Window(col, row, width, height)
        image = np.moveaxis(read_window(self._raster, window, self.bands), 0, -1)
        valid = valid_pixels(image, self.nodata)
        if any(self._masked):
            with reading(self._raster):
                valid &= self._raster.dataset_mask(window=window) > 0
        if self.wanted.sensor == "eo":
            return image.astype(self.wanted.unit), valid
        image = image.astype(np.float32, copy=False)
        if self.unit == "linear":
            image = linear_to_db(np.where(valid[..., None], image, 1.0)).astype(np.float32)
        return image, valid

    def read(self, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """([height, width, bands], valid [height, width] bool) of a window that may reach beyond the scene.

        Raises:
          DataError: the file is damaged.
        """
        image, valid = self.values(row, col, height, width)
        if self.wanted.sensor == "sar" and self.wanted.unit == "db":
            strange = valid & ~((image >= DB_RANGE[0]) & (image <= DB_RANGE[1])).all(-1)
            self.strange |= bool(strange.any())
            valid &= ~strange
        beyond = [(0, height - image.shape[0]), (0, width - image.shape[1])]
        if beyond != [(0, 0), (0, 0)]:
            image, valid = np.pad(image, [*beyond, (0, 0)]), np.pad(valid, beyond)
        return image, valid

    def _choose_bands(self, said: tuple[str, ...]) -> list[int]:
        """The bands to read, from 1: as said, by their names, or all of them in order."""
        wanted, names = self.wanted.bands, [name or "" for name in self._raster.descriptions]
        if said:
            if len(said) != len(wanted):
                raise DataError(f"--bands={','.join(said)} are {len(said)} bands; {self._needs()}")
            return [self._band(text, names) for text in said]
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
            there = f" ({', '.join(names)})" if any(names) else ""
            raise DataError(
                f"{self.path}: {len(names)} bands{there}; {self._needs()}: choose them with --bands=1,2,... "
                "(numbers or names)"
            )
        self.notes.append(f"its bands are taken as {', '.join(wanted)}, in this order (they have no such names)")
        return list(range(1, len(wanted) + 1))

    def _band(self, text: str, names: list[str]) -> int:
        if text in names:
            return names.index(text) + 1
        if text.isdigit() and 1 <= int(text) <= len(names):
            return int(text)
        there = nearest(text, [*range(1, len(names) + 1), *(name for name in names if name)])
        raise DataError(f"{self.path}: --bands names {text!r}; {there}")

    def _needs(self) -> str:
        return f"{self.wanted.title} reads {len(self.wanted.bands)} ({', '.join(self.wanted.bands)})"

    def _check_types(self) -> None:
        for band in self.bands:
            found = np.dtype(self._raster.dtypes[band - 1])
            if found.kind == "c":
                raise DataError(f"{self.path}: band {band} is complex; expected intensity, in the units of --sar_unit")
            wanted = self.wanted.unit
            if self.wanted.sensor == "eo" and wanted != "float32" and not np.can_cast(found, wanted):
                raise DataError(f"{self.path}: band {band} is {found}; {self.wanted.title} was trained on {wanted}")

    def _georeference(self) -> dict[str, Any]:
        gcps, crs = self._raster.gcps
        if gcps and self._raster.transform.is_identity:
            return {"crs": crs, "gcps": gcps}
        if self._raster.crs is None:
            self.notes.append("it has no CRS, and so has its map")
        return {"crs": self._raster.crs, "transform": self._raster.transform}


def check_unit(wanted: Wanted, said: str) -> str:
    """The unit of the scenes' values: as said, or the network's; DataError where one cannot be made the other."""
    if wanted.sensor == "eo":
        if said:
            raise DataError(f"--sar_unit={said}: {wanted.title} reads optical scenes")
        return wanted.unit
    if not said or said == wanted.unit:
        return wanted.unit
    if wanted.unit == "db" and said == "linear":
        return said
    raise DataError(f"--sar_unit={said}: {wanted.title} was trained on SAR in unit {wanted.unit!r}, which it cannot be")


def sample(scene: Scene, patches: int = 8, edge: int = 64) -> np.ndarray:
    """Valid pixels [N, bands] of patches x patches places all over a scene.

    Where they have none, blocks are read until there are some: an empty answer means that all of the scene is invalid.
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
    """The items, each made in a thread while the one before it is worked on."""
    items, end = iter(items), object()
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        coming = executor.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = executor.submit(next, items, end)
            yield item
