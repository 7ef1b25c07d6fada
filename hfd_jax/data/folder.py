"""Your own data: a folder of GeoTIFF pairs with a description of it, `dataset.json`.

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

unit: "db", "linear" (power; stored in dB) or "raw". nodata: a pixel whose bands ALL have this value, or any of whose
bands is NaN, is invalid. offset: added to every valid optical value; {"NAME": value} gives some tiles their own.
split is one of

    {"by": "list", "train": "train.txt", "validation": "val.txt", "test": "test.txt"}     one NAME a line
    {"by": "longitude", "train": [4.2, 4.4], "validation": [4.4, 4.45], "test": [4.45, 4.6]}   of tile centres, degrees
    {"by": "columns", "train": [0, 0.5], "test": [0.5, 1]}      parts of every tile's width, left to right

validation may be left out; a training tile without label file goes to the split "unlabelled". A raster above 1024
pixels is stored in blocks of at most 1024.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import rasterio
import rasterio.warp
import rasterio.windows

from hfd_jax.data.facts import LOOK_AXES, SAR_UNITS, Facts
from hfd_jax.data.tiles import PairedTiles, Tile
from hfd_jax.data.units import linear_to_db
from hfd_jax.errors import DataError, nearest
from hfd_jax.losses import IGNORE_LABEL

MAX_BLOCK = 1024
_KEYS = {
    "": ("name", "sar", "eo", "label", "look_axis", "split"),
    "sar": ("bands", "unit", "nodata", "folder"),
    "eo": ("bands", "nodata", "folder", "offset"),
    "label": ("classes", "ignore", "folder"),
    "split": ("by", "train", "validation", "test"),
}
_OPTIONAL = {"nodata", "folder", "offset", "ignore", "validation"}
# Distinct hues for classes whose description names no colour.
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


class FolderSource:
    """Reads a described folder; a `TileSource`.

    Args:
      raw_dir: holds the sar, eo and label folders.
      description: path of dataset.json; default raw_dir/dataset.json.

    Raises:
      DataError: a missing file, an unknown or missing key, rasters that do not fit.
    """

    def __init__(self, raw_dir: str, description: str | None = None):
        self._dir = raw_dir
        self._path = description or os.path.join(raw_dir, "dataset.json")
        self._text = _read_description(self._path)
        label = self._text["label"]
        codes = [entry["code"] for entry in label["classes"]]
        self._table = np.full(256, 254, np.uint8)  # 254: a code that dataset.json does not know
        self._table[label.get("ignore", [])] = IGNORE_LABEL
        self._table[codes] = range(len(codes))
        self._codes = sorted(codes + label.get("ignore", []))
        self._names = self._list_tiles()
        self.facts = self._make_facts()

    @property
    def name(self) -> str:
        return self._text["name"]

    def keys(self) -> dict[str, list[_Key]]:
        keys: dict[str, list[_Key]] = {}
        for name in self._names:
            labelled = os.path.exists(self._file("label", name))
            with _open(self._file("sar", name)) as raster:
                shape, parts = raster.shape, self._parts(name, raster)
            for split, cols in parts.items():
                if split == "train" and not labelled:
                    split = "unlabelled"
                elif not labelled:
                    raise DataError(
                        f"{self._file('label', name)}: missing, but {name} is in split {split!r}; "
                        "only training tiles may lack a label"
                    )
                keys.setdefault(split, []).extend(_blocks(name, labelled, shape[0], cols))
        return keys

    def read(self, key: _Key) -> Tile:
        text = self._text
        window = rasterio.windows.Window.from_slices(key.rows, key.cols)
        sar, sar_valid, grid = self._read_bands("sar", key.name, window)
        eo, eo_valid, eo_grid = self._read_bands("eo", key.name, window)
        _check_same_grid(self._file("eo", key.name), eo_grid, self._file("sar", key.name), grid)
        sar = sar.astype(np.float32)
        if text["sar"]["unit"] == "linear":
            if sar_valid.any() and sar[sar_valid].min() < 0:
                raise DataError(
                    f"{self._file('sar', key.name)}: values down to {sar[sar_valid].min():.4g}; "
                    "the unit 'linear' is a power, never below 0"
                )
            sar = linear_to_db(np.where(sar_valid[..., None], sar, 1.0)).astype(np.float32)
        label = self._read_label(key, window, grid) if key.labelled else None
        transform = rasterio.windows.transform(window, grid["transform"])
        crs = grid["crs"].to_string() if grid["crs"] else ""
        return Tile(
            key.id,
            sar,
            self._with_offset(eo, eo_valid, key.name),
            label,
            sar_valid,
            eo_valid,
            crs,
            tuple(transform)[:6],
        )

    def _file(self, kind: str, name: str) -> str:
        return os.path.join(self._dir, self._text[kind].get("folder", kind), name + ".tif")

    def _list_tiles(self) -> list[str]:
        listed = {}
        for kind in ("sar", "eo"):
            folder = os.path.join(self._dir, self._text[kind].get("folder", kind))
            if not os.path.isdir(folder):
                raise DataError(f"{folder}: no such folder; {self._path} expects the {kind} rasters there")
            listed[kind] = {name[:-4] for name in os.listdir(folder) if name.endswith(".tif")}
            if not listed[kind]:
                raise DataError(f"{folder}: no .tif file in it")
        for one, other in (("sar", "eo"), ("eo", "sar")):
            alone = sorted(listed[one] - listed[other])
            if alone:
                raise DataError(
                    f"{self._file(other, alone[0])}: missing; {len(alone)} {one} raster(s) have no {other} partner"
                )
        return sorted(listed["sar"])

    def _make_facts(self) -> Facts:
        text, classes = self._text, self._text["label"]["classes"]
        with _open(self._file("eo", self._names[0])) as raster:
            eo_dtype, pixel = raster.dtypes[0], abs(raster.transform.a)
        if text["eo"].get("offset"):
            eo_dtype = "float32"
        return Facts(
            name=text["name"],
            sar_bands=tuple(text["sar"]["bands"]),
            eo_bands=tuple(text["eo"]["bands"]),
            eo_dtype="float32" if eo_dtype == "float64" else eo_dtype,
            sar_unit="raw" if text["sar"]["unit"] == "raw" else "db",
            class_names=tuple(entry["name"] for entry in classes),
            class_colours=tuple(
                tuple(entry.get("colour", _COLOURS[k % len(_COLOURS)])) for k, entry in enumerate(classes)
            ),
            look_axis=text["look_axis"],
            pixel_size=pixel,
        )

    def _parts(self, name: str, raster) -> dict[str, tuple[int, int]]:
        """split -> columns [start, stop) of the tile that belong to it."""
        split, everything = self._text["split"], (0, raster.width)
        ranges = {key: value for key, value in split.items() if key != "by"}
        if split["by"] == "columns":
            return {
                key: (round(start * raster.width), round(stop * raster.width)) for key, (start, stop) in ranges.items()
            }
        if split["by"] == "list":
            return {key: everything for key, path in ranges.items() if name in self._listed(path)}
        if raster.crs is None:
            raise DataError(f"{raster.name}: has no CRS; a split by longitude needs one")
        west, _, east, _ = rasterio.warp.transform_bounds(raster.crs, "EPSG:4326", *raster.bounds)
        centre = (west + east) / 2
        return {key: everything for key, (start, stop) in ranges.items() if start <= centre < stop}

    def _listed(self, path: str) -> set[str]:
        path = os.path.join(os.path.dirname(self._path), path)
        if not os.path.exists(path):
            raise DataError(f"{path}: missing; {self._path} names it as a split list")
        with open(path) as lines:
            names = {line.strip().removesuffix(".tif") for line in lines if line.strip()}
        unknown = sorted(names - set(self._names))
        if unknown:
            raise DataError(f"{path}: lists {unknown[0]!r}, but there is no {self._file('sar', unknown[0])}")
        return names

    def _read_bands(self, kind: str, name: str, window) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        path, bands = self._file(kind, name), self._text[kind]["bands"]
        with _open(path) as raster:
            if raster.count != len(bands):
                raise DataError(f"{path}: {raster.count} bands; {self._path} names {len(bands)} ({', '.join(bands)})")
            grid = {"size": raster.shape, "crs": raster.crs, "transform": raster.transform}
            image = np.moveaxis(_read(raster, window), 0, -1)
        valid = np.isfinite(image).all(-1) if image.dtype.kind == "f" else np.ones(image.shape[:2], bool)
        nodata = self._text[kind].get("nodata")
        if nodata is not None:
            valid &= (image != nodata).any(-1)
        return image, valid, grid

    def _read_label(self, key: _Key, window, grid) -> np.ndarray:
        path = self._file("label", key.name)
        with _open(path) as raster:
            label_grid = {"size": raster.shape, "crs": raster.crs, "transform": raster.transform}
            _check_same_grid(path, label_grid, self._file("sar", key.name), grid)
            codes = _read(raster, window)[0]
        known = (codes >= 0) & (codes < 256)
        label = self._table[np.where(known, codes, 0).astype(np.uint8)]
        unknown = np.unique(codes[~known | (label == 254)])
        if unknown.size:
            raise DataError(f"{path}: label code {unknown[0]} is unknown; {self._path} knows {self._codes}")
        return label

    def _with_offset(self, eo: np.ndarray, valid: np.ndarray, name: str) -> np.ndarray:
        offset = self._text["eo"].get("offset", 0)
        offset = offset.get(name, 0) if isinstance(offset, dict) else offset
        eo = eo.astype(self.facts.eo_dtype)
        return np.where(valid[..., None], eo + np.asarray(offset, eo.dtype), eo) if offset else eo


def _blocks(name: str, labelled: bool, height: int, cols: tuple[int, int]) -> list[_Key]:
    def cut(start, stop):
        count = max(1, -(-(stop - start) // MAX_BLOCK))
        edges = np.linspace(start, stop, count + 1).round().astype(int).tolist()
        return list(itertools.pairwise(edges))

    return [_Key(name, labelled, rows, columns) for rows in cut(0, height) for columns in cut(*cols)]


def _open(path: str):
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file")
    try:
        return rasterio.open(path)
    except rasterio.errors.RasterioIOError as error:
        raise DataError(f"{path}: cannot be read as a raster ({error})") from error


def _read(raster, window) -> np.ndarray:
    try:
        return raster.read(window=window)
    except rasterio.errors.RasterioIOError as error:
        raise DataError(f"{raster.name}: damaged or truncated ({error})") from error


def _check_same_grid(path: str, grid, reference_path: str, reference) -> None:
    if grid["size"] != reference["size"]:
        raise DataError(f"{path}: {grid['size']} pixels (rows, columns); {reference_path} has {reference['size']}")
    if grid["crs"] != reference["crs"]:
        raise DataError(f"{path}: CRS {grid['crs']}; {reference_path} has {reference['crs']}")
    # The corners, in pixels of the reference: an offset, another pixel size and a rotation all show there.
    height, width = grid["size"]
    to_pixel = ~reference["transform"] @ grid["transform"]
    corners = np.array([[0, 0], [0, width], [height, 0], [height, width]], float)
    moved = np.array([(to_pixel @ (x, y))[::-1] for y, x in corners])
    offset = np.abs(moved - corners).max()
    if offset > 0.5:
        raise DataError(
            f"{path}: {offset:.2f} pixels off the grid of {reference_path}; at most half a pixel is accepted"
        )


def _read_description(path: str) -> dict[str, Any]:
    if not os.path.exists(path):
        raise DataError(f"{path}: missing; it describes the data set (see hfd_jax/data/folder.py)")
    with open(path) as file:
        try:
            text = json.load(file)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: not valid JSON ({error})") from error
    for part, known in _KEYS.items():
        values = text.get(part, {}) if part else text
        where = f"{path}: {part + '.' if part else ''}"
        for key in values:
            if key not in known:
                raise DataError(f"{where}{key} is unknown; {nearest(key, known)}")
        for key in known:
            if key not in values and key not in _OPTIONAL:
                raise DataError(f"{where}{key} is missing")
    _check_choice(path, "sar.unit", text["sar"]["unit"], SAR_UNITS)
    _check_choice(path, "look_axis", text["look_axis"], LOOK_AXES)
    _check_choice(path, "split.by", text["split"]["by"], ("list", "longitude", "columns"))
    classes = text["label"]["classes"]
    if len(classes) < 2 or len({entry["code"] for entry in classes}) < len(classes):
        raise DataError(f"{path}: label.classes needs at least two classes with different codes")
    return text


def _check_choice(path: str, field: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise DataError(f"{path}: {field} is {value!r}; {nearest(value, choices)}")
