"""Your own data: a folder of rasters described by `dataset.json`.

    my_data/dataset.json
    my_data/sar/NAME.tif      my_data/eo/NAME.tif      my_data/label/NAME.tif (optional for training tiles)

This is the simplest case: patterns of file names describe any other layout. docs/data.md explains every key;
`described/description.py` checks them. Rasters larger than `block` pixels (1024) are stored in blocks of at most that
size; rasters stored from south to north or from east to west are mirrored, so that the radar looks the same way in all
tiles.
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
from tqdm import tqdm

from hfd_jax.core.errors import DataError, nearest
from hfd_jax.core.options import option
from hfd_jax.data.builder import PairedTiles
from hfd_jax.data.described.description import KINDS, TAG, read_description
from hfd_jax.data.described.labels import LabelTable, read_label
from hfd_jax.data.described.pairs import Pairs
from hfd_jax.data.described.splits import Splits, Window, in_fold
from hfd_jax.data.described.stack import choose_bands, on_grid, read_stack
from hfd_jax.data.described.vectors import VectorLabels
from hfd_jax.data.facts import Facts
from hfd_jax.data.rasters import (
    Grid,
    RasterError,
    crs_text,
    cut,
    grid_of,
    is_complex,
    open_raster,
    pixel_metres,
    scale_tags,
)
from hfd_jax.data.reader import Reader
from hfd_jax.data.tiles import Tile, north_up
from hfd_jax.data.units import linear_to_db

MOST_ZEROS = 0.01  # share of pixels that are exactly 0 in all bands, above which they cannot be backscatter
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
      raw_dir: folder that contains the files.
      description: path of the description; default: raw_dir/dataset.json.
      test_fold: for a split by fold, the value of its field whose tiles are the test split.

    Raises:
      DataError: a file is missing, or the description has faults.
    """

    builder = Folder
    relisted = ("_keys",)

    raw_dir: str
    description: str | None = option(None, "description of the data set; default: RAW_DIR/dataset.json")
    test_fold: str | None = option(None, "for split.by 'fold': the value of its field whose tiles are the test split")

    @staticmethod
    def recognise(raw_dir: str) -> bool:
        return os.path.exists(os.path.join(raw_dir, "dataset.json"))

    def __post_init__(self):
        text = read_description(self.description or os.path.join(self.raw_dir, "dataset.json"))
        self._pairs = Pairs(text, self.raw_dir)
        self._text = in_fold(text, self._pairs, self.test_fold)
        self._splits = Splits(self._text, self._pairs, self.raw_dir)
        labels = VectorLabels if self._text.label.column else LabelTable
        self._table = labels(self._text.label, self._text.path)
        self._check_offsets()
        self.name = self._text.name
        self.facts = self._make_facts()

    @property
    def settings(self) -> dict[str, Any]:
        sizes: dict[str, dict[str, Any]] = {}
        for kind in KINDS:
            found = {name: self._sizes(kind, name) for name in self._pairs.names}
            sizes[kind] = {name: size for name, size in found.items() if size is not None}
        files = hashlib.sha1(json.dumps(sizes, sort_keys=True).encode()).hexdigest()
        lists = {split: sorted(names) for split, names in self._splits.lists.items()}
        return {"description": self._text.text, "lists": lists, "files": files}

    @property
    def left_out(self) -> dict[str, int]:
        assigned = {key.name for keys in self._keys.values() for key in keys}
        missing = [name for name in self._pairs.names if name not in assigned]
        return {f"that belong to no split, for example {missing[0]}": len(missing)} if missing else {}

    @property
    def notes(self) -> list[str]:
        return self._pairs.notes

    def keys(self) -> dict[str, list[_Key]]:
        return self._keys

    @functools.cached_property
    def _keys(self) -> dict[str, list[_Key]]:  # opens a raster of every tile once
        keys: dict[str, list[_Key]] = {}
        windows: list[Window] = []
        grids: dict[str, Grid] = {}
        for name in tqdm(self._pairs.names, "listing", unit="tile", mininterval=1.0, delay=5, leave=False):
            grid = self._grid(name)
            if grid is None:  # `read` reports what is wrong with it
                keys.setdefault(self._split_of_unreadable(name), []).append(
                    self._key("train", Window(name, (0, 1), (0, 1)))
                )
            elif self._splits.in_blocks:
                grids[name] = grid
                windows += self._windows(name, grid, (0, grid["size"][1]))
            else:
                for split, columns in self._splits.parts(name, grid).items():
                    for window in self._windows(name, grid, columns):
                        key = self._key(split, window)
                        keys.setdefault(self._final(split, key), []).append(key)
        if windows:
            for split, of_split in self._splits.divide(windows, grids).items():
                for window in of_split:
                    key = self._key(split, window)
                    keys.setdefault(self._final(split, key), []).append(key)
        return keys

    def read(self, key: _Key) -> Tile:
        text, window = self._text, rasterio.windows.Window.from_slices(key.rows, key.cols)
        sar_paths, eo_paths = (self._pairs.paths(kind, key.name) for kind in ("sar", "eo"))
        sar, sar_valid, grid = read_stack(sar_paths, "sar", text.sar, window, None)
        reference = (sar_paths[0], grid)
        eo, eo_valid, _ = read_stack(eo_paths, "eo", text.eo, window, reference)
        self._check_type(eo, eo_paths[0])
        sar = self._in_db(sar.astype(np.float32), sar_valid, sar_paths[0])
        label = self._read_label(key, window, reference) if key.labelled else None
        tile = Tile(
            key.id,
            sar,
            self._with_offset(eo, eo_valid, key.name),
            label,
            sar_valid,
            eo_valid,
            crs_text(grid),
            tuple(rasterio.windows.transform(window, grid["transform"]))[:6],
        )
        return north_up(tile)

    def _sizes(self, kind: str, name: str) -> Any:
        """Bytes of a tile's files: a number for one file, a list for several, None if one is missing."""
        try:
            found = [os.path.getsize(path) for path in self._pairs.paths(kind, name)]
        except OSError:
            return None
        return found[0] if len(found) == 1 else found or None

    def _grid(self, name: str) -> Grid | None:
        """The grid of the first raster of the pair that opens."""
        for kind in ("sar", "eo"):
            with contextlib.suppress(RasterError), open_raster(self._pairs.paths(kind, name)[0]) as raster:
                return grid_of(raster)
        return None

    def _split_of_unreadable(self, name: str) -> str:
        return next((split for split, names in self._splits.lists.items() if name in names), "train")

    def _windows(self, name: str, grid: Grid, columns: tuple[int, int]) -> list[Window]:
        block = self._text.block
        return [Window(name, r, c) for r in cut(0, grid["size"][0], block) for c in cut(*columns, block)]

    def _key(self, split: str, window: Window) -> _Key:
        has_label = split != "unlabelled" and (self._pairs.has("label", window.name) or self._needs_label(split))
        return _Key(window.name, has_label, window.rows, window.cols)

    def _needs_label(self, split: str) -> bool:
        return split != "train" or self._text.label.missing == "refuse"

    def _final(self, split: str, key: _Key) -> str:
        return "unlabelled" if split == "train" and not key.labelled else split

    def _make_facts(self) -> Facts:
        text, classes = self._text, self._text.label
        with_eo = next((name for name in self._pairs.names if self._pairs.has("eo", name)), None)
        if with_eo is None:
            raise DataError(
                f"{self._pairs.paths('eo', self._pairs.names[0])[0]}: no such file, nor that of another tile"
            )
        self._eo_type, stored = self._stored_type(self._pairs.paths("eo", with_eo))
        grids = (self._grid(name) for name in self._pairs.names)
        first = next((grid for grid in grids if grid), None)
        return Facts(
            name=text.name,
            sar_bands=text.sar.bands,
            eo_bands=text.eo.bands,
            eo_dtype=stored,
            sar_unit="raw" if text.sar.unit == "raw" else "db",
            class_names=classes.names,
            class_colours=tuple(colour or _COLOURS[k % len(_COLOURS)] for k, colour in enumerate(classes.colours)),
            look_axis=text.look_axis,
            pixel_size=round(pixel_metres(first), 6) if first else 0.0,
        )

    def _stored_type(self, paths: list[str]) -> tuple[np.dtype, str]:
        with contextlib.ExitStack() as stack:
            rasters = [stack.enter_context(open_raster(path)) for path in paths]
            found = []
            for raster, chosen in zip(rasters, choose_bands(rasters, "eo", self._text.eo), strict=True):
                dtypes = [raster.dtypes[band - 1] for band in chosen.values()]
                if any(map(is_complex, dtypes)):
                    raise DataError(f"{raster.name}: is complex ({dtypes[0]}); expected real values")
                found += dtypes + (["float32"] if scale_tags(raster, [*chosen.values()]) else [])
        offsets = self._text.eo.offset.values() if isinstance(self._text.eo.offset, dict) else [self._text.eo.offset]
        kind = np.result_type(*map(np.dtype, found))
        if kind.kind in "iu" and max(map(abs, offsets), default=0) > np.iinfo(kind).max:
            raise DataError(
                f"{self._text.path}: eo.offset is {max(offsets, key=abs)}, but {paths[0]} holds {kind}, at most "
                f"{np.iinfo(kind).max}; expected an offset in the unit of the stored values"
            )
        return kind, "float32" if any(offsets) or kind.kind == "f" else kind.name

    def _check_offsets(self) -> None:
        offset = self._text.eo.offset
        unknown = sorted(set(offset) - set(self._pairs.names)) if isinstance(offset, dict) else []
        if unknown:
            hint = nearest(unknown[0], self._pairs.names[:20])
            raise DataError(f"{self._text.path}: eo.offset has the unknown tile {unknown[0]!r}; {hint}")

    def _check_type(self, eo: np.ndarray, path: str) -> None:
        """A data set holds stored numbers or scaled values, never both."""
        floats = eo.dtype.kind == "f", self._eo_type.kind == "f"
        if floats[0] != floats[1] or not (floats[0] or np.can_cast(eo.dtype, self._eo_type)):
            first = self._pairs.paths("eo", self._pairs.names[0])[0]
            raise DataError(
                f"{path}: type {eo.dtype}; expected {self._eo_type}, as in {first} (values with a scale or offset tag "
                "are float32)"
            )

    def _in_db(self, sar: np.ndarray, valid: np.ndarray, path: str) -> np.ndarray:
        unit, nodata = self._text.sar.unit, self._text.sar.nodata
        if unit == "raw" or not valid.any():
            return sar
        zeros = (sar == 0).all(-1) & valid
        if nodata == TAG and zeros.sum() > MOST_ZEROS * valid.sum():
            raise DataError(
                f"{path}: {zeros.sum() / valid.sum():.0%} of its pixels are exactly 0 in all bands and count as data, "
                f"though the unit is {unit!r}; expected sar.nodata in the description: 0 if they have no data, null if "
                "0 is a value"
            )
        if unit == "linear":
            if sar[valid].min() < 0:
                raise DataError(
                    f"{path}: values down to {sar[valid].min():.4g}; "
                    "expected 0 or more, since the unit 'linear' is a power"
                )
            sar = linear_to_db(np.where(valid[..., None], sar, 1.0)).astype(np.float32)
        return sar

    def _read_label(self, key: _Key, window, reference: tuple[str, Grid]) -> np.ndarray:
        label, paths = self._text.label, self._pairs.paths("label", key.name)
        if not paths or not os.path.exists(paths[0]):
            path = paths[0] if paths else self._text.path
            hint = "" if label.missing == "unlabelled" else " if label.missing is 'unlabelled'"
            raise DataError(f"{path}: missing; only training tiles may lack a label{hint}")
        if isinstance(self._table, VectorLabels):
            return self._table.read(paths[0], window, reference[1])
        with (
            open_raster(paths[0]) as raster,
            on_grid(raster, "label", *reference, label.resample, label.nodata) as view,
        ):
            return read_label(view, window, label, self._table)

    def _with_offset(self, eo: np.ndarray, valid: np.ndarray, name: str) -> np.ndarray:
        offset = self._text.eo.offset
        offset = offset.get(name, 0) if isinstance(offset, dict) else offset
        eo = eo.astype(self.facts.eo_dtype)
        return np.where(valid[..., None], eo + np.asarray(offset, eo.dtype), eo) if offset else eo
