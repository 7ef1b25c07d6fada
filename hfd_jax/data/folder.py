"""Your own data: a folder of GeoTIFF pairs described by `dataset.json`.

    my_data/dataset.json
    my_data/sar/NAME.tif      my_data/eo/NAME.tif      my_data/label/NAME.tif (optional for training tiles)

The three rasters of a NAME share one grid: size, CRS and transform (to half a pixel). dataset.json, every key:

    {"name": "my_data",
     "sar":   {"bands": ["VV", "VH"], "unit": "db", "nodata": null, "folder": "sar"},
     "eo":    {"bands": ["R", "G", "B"], "nodata": 0, "folder": "eo", "offset": 0},
     "label": {"folder": "label", "ignore": [0],
               "classes": [{"code": 1, "name": "water", "colour": [0, 90, 200]}, ...]},
     "look_axis": "x",
     "split": ...}

unit: "db", "linear" (power; stored in dB) or "raw". nodata: a pixel is invalid if ALL its bands have this value
(default: the raster's nodata tag) or any band is NaN. offset: added to every valid optical value; {"NAME": value} sets
it per tile. split is one of

    {"by": "list", "train": "train.txt", "validation": "val.txt", "test": "test.txt"}     one NAME per line
    {"by": "longitude", "train": [4.2, 4.4], "validation": [4.4, 4.45], "test": [4.45, 4.6]}   tile centres, degrees
    {"by": "columns", "train": [0, 0.5], "test": [0.5, 1]}      parts of every tile's width, left to right

A range of longitudes across the antimeridian is written [179.9, 180.1]. validation is optional. Training tiles without
a label file form the split "unlabelled". Rasters larger than 1024 pixels are stored in blocks of at most 1024. Rasters
stored from south to north or from east to west are turned, so that the radar looks the same way in all tiles.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from typing import Any

import numpy as np
import rasterio
import rasterio.windows
from absl import logging

from hfd_jax.core.errors import DataError, nearest
from hfd_jax.core.options import option
from hfd_jax.data.builder import PairedTiles
from hfd_jax.data.description import UNKNOWN_CODE, code_table, read_description
from hfd_jax.data.facts import Facts
from hfd_jax.data.longitudes import central_longitude, is_within
from hfd_jax.data.rasters import (
    Grid,
    RasterError,
    check_same_grid,
    crs_text,
    cut,
    open_raster,
    read_image,
    valid_pixels,
)
from hfd_jax.data.reader import Reader
from hfd_jax.data.tiles import Tile, north_up
from hfd_jax.data.units import linear_to_db

MAX_BLOCK = 1024
# Colours of classes whose description has none.
_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (120, 120, 120),
)


class Folder(PairedTiles):
    """Data sets described by a dataset.json."""

    VERSION = PairedTiles.VERSION


@dataclasses.dataclass(frozen=True)
class _Key:
    """A window of a tile: rows and columns [start, stop)."""

    name: str
    labelled: bool
    rows: tuple[int, int]
    cols: tuple[int, int]

    @property
    def id(self) -> str:
        return f"{self.name}_{self.rows[0]}_{self.cols[0]}"


@dataclasses.dataclass(eq=False)
class FolderSource(Reader):
    """Reads a folder with a description; a `TileSource`.

    Attributes:
      raw_dir: folder that contains the sar, eo and label folders.
      description: path of the description; default: raw_dir/dataset.json.

    Raises:
      DataError: a file is missing, or a key is unknown or missing.
    """

    builder = Folder
    relisted = ("_keys",)

    raw_dir: str
    description: str | None = option(None, "description of the data set; default: RAW_DIR/dataset.json")

    @staticmethod
    def recognise(raw_dir: str) -> bool:
        return os.path.exists(os.path.join(raw_dir, "dataset.json"))

    def __post_init__(self):
        self._path = self.description or os.path.join(self.raw_dir, "dataset.json")
        self._text = read_description(self._path)
        self._table = code_table(self._text["label"])
        self._names = self._list_tiles()
        self._lists = self._read_lists()
        self._check_offsets()
        self.name = self._text["name"]
        self.facts = self._make_facts()

    @property
    def settings(self) -> dict[str, Any]:
        sizes = {
            kind: {
                name: os.path.getsize(path) for name in self._names if os.path.exists(path := self._file(kind, name))
            }
            for kind in ("sar", "eo", "label")
        }
        files = hashlib.sha1(json.dumps(sizes, sort_keys=True).encode()).hexdigest()
        return {"description": self._text, "lists": {k: sorted(v) for k, v in self._lists.items()}, "files": files}

    def keys(self) -> dict[str, list[_Key]]:
        return self._keys

    @functools.cached_property
    def _keys(self) -> dict[str, list[_Key]]:  # opens every raster once
        keys: dict[str, list[_Key]] = {}
        unused = []
        for name in self._names:
            labelled = os.path.exists(self._file("label", name))
            height, parts = self._extent(name)
            if not parts:
                unused.append(name)
            for split, cols in parts.items():
                if split == "train" and not labelled:
                    split = "unlabelled"
                keys.setdefault(split, []).extend(_blocks(name, labelled or split != "unlabelled", height, cols))
        if unused:
            logging.warning("%s: %d tile(s) belong to no split, for example %s", self._path, len(unused), unused[0])
        return keys

    def read(self, key: _Key) -> Tile:
        text = self._text
        window = rasterio.windows.Window.from_slices(key.rows, key.cols)
        sar, sar_valid, grid = self._read_bands("sar", key.name, window)
        eo, eo_valid, eo_grid = self._read_bands("eo", key.name, window)
        check_same_grid(self._file("eo", key.name), eo_grid, self._file("sar", key.name), grid)
        sar = sar.astype(np.float32)
        if text["sar"]["unit"] == "linear":
            if sar_valid.any() and sar[sar_valid].min() < 0:
                raise DataError(
                    f"{self._file('sar', key.name)}: values down to {sar[sar_valid].min():.4g}; "
                    "expected 0 or more, since the unit 'linear' is a power"
                )
            sar = linear_to_db(np.where(sar_valid[..., None], sar, 1.0)).astype(np.float32)
        label = self._read_label(key, window, grid) if key.labelled else None
        transform = rasterio.windows.transform(window, grid["transform"])
        tile = Tile(
            key.id,
            sar,
            self._with_offset(eo, eo_valid, key.name),
            label,
            sar_valid,
            eo_valid,
            crs_text(grid),
            tuple(transform)[:6],
        )
        return north_up(tile)

    def _file(self, kind: str, name: str) -> str:
        return os.path.join(self.raw_dir, self._text[kind].get("folder", kind), name + ".tif")

    def _extent(self, name: str) -> tuple[int, dict[str, tuple[int, int]]]:
        """(height, split -> columns), from a readable raster of the pair; `read` reports an unreadable one."""
        for kind in ("sar", "eo"):
            with contextlib.suppress(RasterError), open_raster(self._file(kind, name)) as raster:
                return raster.height, self._parts(name, raster)
        return 1, {"train": (0, 1)}

    def _list_tiles(self) -> list[str]:
        listed = {}
        for kind in ("sar", "eo"):
            folder = os.path.join(self.raw_dir, self._text[kind].get("folder", kind))
            if not os.path.isdir(folder):
                raise DataError(f"{folder}: no such folder; expected the {kind} rasters of {self._path} in it")
            listed[kind] = {name[:-4] for name in os.listdir(folder) if name.endswith(".tif")}
            if not listed[kind]:
                raise DataError(f"{folder}: contains no .tif file")
            for name in sorted(listed[kind]):
                if name != name.encode(errors="replace").decode():
                    raise DataError(f"{folder}: the name {name + '.tif'!a} is not valid UTF-8; rename the file")
        return sorted(listed["sar"] | listed["eo"])

    def _make_facts(self) -> Facts:
        text, classes = self._text, self._text["label"]["classes"]
        present = [path for name in self._names if os.path.exists(path := self._file("eo", name))]
        with open_raster(present[0]) as raster:
            eo_dtype, pixel = raster.dtypes[0], abs(raster.transform.a)
        if text["eo"].get("offset") or eo_dtype == "float64":
            eo_dtype = "float32"
        return Facts(
            name=text["name"],
            sar_bands=tuple(text["sar"]["bands"]),
            eo_bands=tuple(text["eo"]["bands"]),
            eo_dtype=eo_dtype,
            sar_unit="raw" if text["sar"]["unit"] == "raw" else "db",
            class_names=tuple(entry["name"] for entry in classes),
            class_colours=tuple(
                tuple(entry.get("colour", _COLOURS[k % len(_COLOURS)])) for k, entry in enumerate(classes)
            ),
            look_axis=text["look_axis"],
            pixel_size=pixel,
        )

    def _parts(self, name: str, raster) -> dict[str, tuple[int, int]]:
        """split -> columns [start, stop) of the tile."""
        split, everything = self._text["split"], (0, raster.width)
        if split["by"] == "list":
            return {key: everything for key, names in self._lists.items() if name in names}
        ranges = {key: value for key, value in split.items() if key != "by"}
        if split["by"] == "columns":
            return {
                key: (round(start * raster.width), round(stop * raster.width)) for key, (start, stop) in ranges.items()
            }
        if raster.crs is None:
            raise DataError(f"{raster.name}: has no CRS; a split by longitude needs one")
        centre = central_longitude(raster)
        return {key: everything for key, (start, stop) in ranges.items() if is_within(centre, start, stop)}

    def _read_lists(self) -> dict[str, set[str]]:
        """The split lists; raises DataError if a name does not exist or is in two lists."""
        split, known = self._text["split"], set(self._names)
        if split["by"] != "list":
            return {}
        lists: dict[str, set[str]] = {}
        for key, path in ((key, path) for key, path in split.items() if key != "by"):
            path = os.path.join(os.path.dirname(self._path), path)
            if not os.path.exists(path):
                raise DataError(f"{path}: missing; {self._path} refers to it as a split list")
            with open(path, encoding="utf-8-sig") as lines:
                try:
                    names = {line.strip().removesuffix(".tif") for line in lines if line.strip()}
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}: not a text file in UTF-8 ({error.reason})") from error
            if names - known:
                name = min(names - known)
                raise DataError(f"{path}: lists {name!r}, but {self._file('sar', name)} does not exist")
            for other, earlier in lists.items():
                if names & earlier:
                    raise DataError(
                        f"{path}: {min(names & earlier)!r} is also in split {other!r}; splits must not share tiles"
                    )
            lists[key] = names
        return lists

    def _check_offsets(self) -> None:
        offset = self._text["eo"].get("offset", 0)
        unknown = sorted(set(offset) - set(self._names)) if isinstance(offset, dict) else []
        if unknown:
            hint = nearest(unknown[0], self._names[:20])
            raise DataError(f"{self._path}: eo.offset has the unknown tile {unknown[0]!r}; {hint}")

    def _read_bands(self, kind: str, name: str, window) -> tuple[np.ndarray, np.ndarray, Grid]:
        path, stored = self._file(kind, name), self.facts.eo_dtype
        image, grid = read_image(path, window, tuple(self._text[kind]["bands"]))
        if kind == "eo" and stored != "float32" and not np.can_cast(image.dtype, stored):
            first = self._file(kind, self._names[0])
            raise DataError(f"{path}: type {image.dtype}; expected {stored}, as in {first}")
        return image, valid_pixels(image, self._text[kind].get("nodata", grid["nodata"])), grid

    def _read_label(self, key: _Key, window, grid) -> np.ndarray:
        path = self._file("label", key.name)
        if not os.path.exists(path):
            raise DataError(f"{path}: missing; only training tiles may lack a label")
        codes, label_grid = read_image(path, window)
        check_same_grid(path, label_grid, self._file("sar", key.name), grid)
        codes = codes[..., 0]
        known = (codes >= 0) & (codes < 256)
        label = self._table[np.where(known, codes, 0).astype(np.uint8)]
        unknown = np.unique(codes[~known | (label == UNKNOWN_CODE)])
        if unknown.size:
            codes_known = np.flatnonzero(self._table != UNKNOWN_CODE).tolist()
            raise DataError(f"{path}: label code {unknown[0]} is unknown; {self._path} lists {codes_known}")
        return label

    def _with_offset(self, eo: np.ndarray, valid: np.ndarray, name: str) -> np.ndarray:
        offset = self._text["eo"].get("offset", 0)
        offset = offset.get(name, 0) if isinstance(offset, dict) else offset
        eo = eo.astype(self.facts.eo_dtype)
        return np.where(valid[..., None], eo + np.asarray(offset, eo.dtype), eo) if offset else eo


def _blocks(name: str, labelled: bool, height: int, cols: tuple[int, int]) -> list[_Key]:
    return [
        _Key(name, labelled, rows, columns) for rows in cut(0, height, MAX_BLOCK) for columns in cut(*cols, MAX_BLOCK)
    ]
