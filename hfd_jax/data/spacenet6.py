"""SpaceNet 6 (Rotterdam): airborne X-band SAR, optical image and building footprints, 900 x 900 pixels of 0.5 m.

    RAW_DIR/SAR-Intensity/SN6_Train_AOI_11_Rotterdam_SAR-Intensity_T0_T1_tile_N.tif        T0_T1 is the strip
    RAW_DIR/PS-RGB/..._PS-RGB_T0_T1_tile_N.tif                   or PS-RGBNIR
    RAW_DIR/geojson_buildings/..._Buildings_T0_T1_tile_N.geojson   or SummaryData/SN6_Train_..._Buildings.csv
    RAW_DIR/SummaryData/SAR_orientations.txt

The flag of a strip tells whether the radar looked from the north (0) or from the south (1). All arrays of a tile with
flag 1 are rotated by 180 degrees, so that the radar always looks the same way, and the tile is marked as `rotated`.

About twenty passes cover the same ground, so tiles are divided by the easting of their upper left corner:

    baseline    five columns; the easternmost is the validation split: 2696 training and 705 validation tiles, as in the
                challenge's baseline and most papers. Tiles along the border share ground: 335 training tiles do.
    ten_fold    ten columns; column FOLD is the test split, the column five further the validation split, and their
                neighbours are left out. No two splits share ground.
"""

import contextlib
import dataclasses
import functools
import os
from typing import Any

import numpy as np
import rasterio.transform

from hfd_jax.core.errors import DataError
from hfd_jax.core.options import option
from hfd_jax.data.builder import PairedTiles
from hfd_jax.data.facts import Facts
from hfd_jax.data.footprints import draw, polygons_of, read_geojson, read_summary
from hfd_jax.data.rasters import (
    Grid,
    check_same_grid,
    crs_text,
    is_visible_tif,
    open_raster,
    read_bands,
    read_image,
    stored_type,
)
from hfd_jax.data.reader import Reader
from hfd_jax.data.tiles import Tile, rotate

AREA = "AOI_11_Rotterdam"
PREFIX = f"SN6_Train_{AREA}"
SAR = "SAR-Intensity"
SAR_BANDS = ("HH", "HV", "VH", "VV")
# The four-band products store blue first, despite their name.
EO_BANDS = {"PS-RGB": ("R", "G", "B"), "PS-RGBNIR": ("B", "G", "R", "NIR")}
ORIENTATIONS = os.path.join("SummaryData", "SAR_orientations.txt")
SUMMARY = os.path.join("SummaryData", f"{PREFIX}_Buildings.csv")
SPLITTINGS = ("baseline", "ten_fold")
EPSG = 32631
BASELINE_EDGES = (591550.0, 596250.0)  # metres east, EPSG:32631
TEN_FOLD_EDGES = (591640.0, 596160.0)


class Spacenet6(PairedTiles):
    """SpaceNet 6, building footprints."""

    VERSION = PairedTiles.VERSION


@dataclasses.dataclass(frozen=True)
class Spacenet6Source(Reader):
    """Reads the training part of SpaceNet 6; a `TileSource`.

    Attributes:
      raw_dir: folder that contains SAR-Intensity or train/AOI_11_Rotterdam.
      eo_product: "PS-RGB" or "PS-RGBNIR".
      splitting: "baseline" or "ten_fold".
      fold: fold of ten_fold, 0 to 9.
      min_area: drop footprints smaller than this, square metres.
      sar_order, eo_order: band names in stored order, separated by commas; "" for SAR_BANDS, EO_BANDS.
    """

    builder = Spacenet6
    relisted = ("_names", "_keys", "_footprints")

    raw_dir: str
    eo_product: str = option("PS-RGB", "optical product", choices=tuple(EO_BANDS))
    splitting: str = option("ten_fold", "division into splits; see hfd_jax/data/spacenet6.py", choices=SPLITTINGS)
    fold: int = option(0, "fold of ten_fold, 0 to 9", at_least=0, at_most=9)
    min_area: float = option(0.0, "drop footprints smaller than this, square metres", at_least=0)
    sar_order: str = option("", "stored order of the SAR bands; default: HH,HV,VH,VV")
    eo_order: str = option("", "stored order of the optical bands; default: R,G,B or B,G,R,NIR")

    @staticmethod
    def recognise(raw_dir: str) -> bool:
        return any(os.path.isdir(os.path.join(raw_dir, folder)) for folder in (SAR, os.path.join("train", AREA)))

    def __post_init__(self):
        for field, choices in (("eo_product", tuple(EO_BANDS)), ("splitting", SPLITTINGS), ("fold", range(10))):
            if getattr(self, field) not in choices:
                raise DataError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(map(str, choices))}")
        for field, usual in (("sar_order", SAR_BANDS), ("eo_order", EO_BANDS[self.eo_product])):
            given = getattr(self, field)
            if given and sorted(given.split(",")) != sorted(usual):
                raise DataError(f"{field} is {given!r}; expected {','.join(usual)} in any order")
        for part in (SAR, self.eo_product):
            if not os.path.isdir(os.path.join(self._root, part)):
                raise DataError(f"{os.path.join(self.raw_dir, part)}: no such folder, and none in train/{AREA}")

    @property
    def name(self) -> str:
        splitting = f"ten_fold_{self.fold}" if self.splitting == "ten_fold" else self.splitting
        return splitting + {"PS-RGB": "", "PS-RGBNIR": "_rgbnir"}[self.eo_product]

    @property
    def sar_bands(self) -> tuple[str, ...]:
        return tuple(self.sar_order.split(",")) if self.sar_order else SAR_BANDS

    @property
    def eo_bands(self) -> tuple[str, ...]:
        return tuple(self.eo_order.split(",")) if self.eo_order else EO_BANDS[self.eo_product]

    @property
    def settings(self) -> dict[str, Any]:
        values = {key: value for key, value in dataclasses.asdict(self).items() if key != "raw_dir"}
        return {**values, "labels": "geojson" if self._has_geojson else "summary", "tiles": len(self._names)}

    @functools.cached_property
    def facts(self) -> Facts:
        paths = (self._file(self.eo_product, name) for name in self._names)
        return Facts(
            name="spacenet6",
            sar_bands=self.sar_bands,
            eo_bands=self.eo_bands,
            eo_dtype=stored_type(paths, os.path.join(self._root, self.eo_product)),
            sar_unit="raw",
            class_names=("background", "building"),
            class_colours=((90, 90, 90), (230, 90, 40)),
            look_axis="y",
            pixel_size=0.5,
        )

    def keys(self) -> dict[str, list[str]]:
        return self._keys

    @functools.cached_property
    def _keys(self) -> dict[str, list[str]]:  # opens every raster once
        keys: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for name in self._names:
            easting = self._easting(name)
            split = "train" if easting is None else split_of(easting, self.splitting, self.fold)
            if split:
                keys[split].append(name)
        if self.eo_product == "PS-RGBNIR":
            self._check_band_order()
        return keys

    @property
    def left_out(self) -> dict[str, int]:
        kept = sum(map(len, self._keys.values()))
        return {"in columns beside those held out": len(self._names) - kept} if self.splitting == "ten_fold" else {}

    def read(self, key: str) -> Tile:
        sar_path, eo_path = self._file(SAR, key), self._file(self.eo_product, key)
        sar, sar_valid, grid = read_bands(sar_path, bands=self.sar_bands, nodata=0)
        eo, eo_valid, eo_grid = read_bands(eo_path, bands=self.eo_bands, nodata=0)
        if grid["crs"] is None or grid["crs"].to_epsg() != EPSG:
            raise DataError(f"{sar_path}: CRS {grid['crs']}; expected EPSG:{EPSG}")
        check_same_grid(eo_path, eo_grid, sar_path, grid)
        tile = Tile(
            id=key,
            sar=sar.astype(np.float32),
            eo=eo,
            label=self._label(key, grid),
            sar_valid=sar_valid,
            eo_valid=eo_valid,
            crs=crs_text(grid),
            transform=tuple(grid["transform"])[:6],
        )
        return rotate(tile) if self._looks_from_south(key) else tile

    @functools.cached_property
    def _root(self) -> str:
        nested = os.path.join(self.raw_dir, "train", AREA)
        return nested if os.path.isdir(os.path.join(nested, SAR)) else self.raw_dir

    @functools.cached_property
    def _names(self) -> list[str]:
        """Image ids T0_T1_tile_N of all tiles; reading a tile reports a missing partner."""
        names = set().union(*(_image_ids(os.path.join(self._root, part)) for part in (SAR, self.eo_product)))
        if not names:
            raise DataError(f"{os.path.join(self._root, SAR)}: contains no .tif file")
        return sorted(names)

    @functools.cached_property
    def _has_geojson(self) -> bool:
        return os.path.isdir(os.path.join(self._root, "geojson_buildings"))

    @functools.cached_property
    def _orientations(self) -> dict[str, str]:
        path = os.path.join(self._root, ORIENTATIONS)
        if not os.path.exists(path):
            raise DataError(f"{path}: missing; it gives the look direction of each strip")
        with open(path, encoding="utf-8") as lines:
            rows = [line.split() for line in lines if line.strip()]
        for row in rows:
            if len(row) != 2:
                raise DataError(f"{path}: has the line {' '.join(row)!r}; expected a strip and its flag")
        return dict(rows)

    @functools.cached_property
    def _footprints(self) -> dict[str, list[str]]:
        return read_summary(os.path.join(self._root, SUMMARY))

    def _file(self, part: str, name: str) -> str:
        return os.path.join(self._root, part, f"{PREFIX}_{part}_{name}.tif")

    def _looks_from_south(self, name: str) -> bool:
        strip = name.split("_tile_")[0]
        flag = self._orientations.get(strip)
        if flag not in ("0", "1"):
            raise DataError(f"{os.path.join(self._root, ORIENTATIONS)}: strip {strip} has flag {flag}; expected 0 or 1")
        return flag == "1"

    def _label(self, name: str, grid: Grid) -> np.ndarray:
        if self._has_geojson:
            path = os.path.join(self._root, "geojson_buildings", f"{PREFIX}_Buildings_{name}.geojson")
            shapes, transform, unit = read_geojson(path, grid["crs"]), grid["transform"], 1.0
        else:
            path = os.path.join(self._root, SUMMARY)
            if name not in self._footprints:
                raise DataError(f"{path}: no row for {name}")
            shapes, transform = polygons_of(self._footprints[name], path), rasterio.transform.Affine.identity()
            unit = abs(grid["transform"].a * grid["transform"].e)  # square metres of a pixel
        return draw([shape for shape in shapes if shape.area * unit >= self.min_area], grid["size"], transform)

    def _easting(self, name: str) -> float | None:
        """Easting of the upper left corner, metres; None if no raster opens (reading the tile raises the error)."""
        for part in (SAR, self.eo_product):
            with contextlib.suppress(DataError), open_raster(self._file(part, name)) as raster:
                if raster.crs is not None and raster.crs.to_epsg() == EPSG:
                    return raster.transform.c
        return None

    def _check_band_order(self) -> None:
        """If both products exist, checks that their red bands agree."""
        both = [n for n in self._names if all(os.path.exists(self._file(p, n)) for p in ("PS-RGB", "PS-RGBNIR"))]
        votes = 0
        for name in both[:: max(1, len(both) // 20)]:
            with contextlib.suppress(DataError):
                rgb, _ = read_image(self._file("PS-RGB", name), bands=EO_BANDS["PS-RGB"])
                eo, _ = read_image(self._file("PS-RGBNIR", name), bands=self.eo_bands)
                votes += _prefers(eo[..., self.eo_bands.index("R")], eo[..., self.eo_bands.index("B")], rgb)
        if votes < 0:
            raise DataError(
                f"{os.path.join(self._root, 'PS-RGBNIR')}: in the order {','.join(self.eo_bands)}, band R resembles "
                "the blue band of PS-RGB; expected the red one (set the stored order with --eo_order)"
            )


def _prefers(red: np.ndarray, blue: np.ndarray, rgb: np.ndarray) -> int:
    """1 if (red, blue) resemble bands (0, 2) of `rgb` more than (2, 0), -1 if less, 0 if undecided."""
    if red.shape != rgb.shape[:2] or min(np.ptp(red), np.ptp(blue), np.ptp(rgb[..., 0]), np.ptp(rgb[..., 2])) == 0:
        return 0

    def correlation(one, other):
        return np.corrcoef(one.ravel(), other.ravel())[0, 1]

    right = correlation(red, rgb[..., 0]) + correlation(blue, rgb[..., 2])
    return int(np.sign(right - correlation(red, rgb[..., 2]) - correlation(blue, rgb[..., 0])))


def split_of(easting: float, splitting: str, fold: int = 0) -> str | None:
    """The split of a tile by the easting of its upper left corner, metres in EPSG:32631; None if left out."""
    if splitting == "baseline":
        return "validation" if _column(easting, BASELINE_EDGES, 5) == 4 else "train"
    column, validation = _column(easting, TEN_FOLD_EDGES, 10), (fold + 5) % 10
    if column in (fold, validation):
        return "test" if column == fold else "validation"
    return None if min(abs(column - fold), abs(column - validation)) == 1 else "train"


def _column(easting: float, edges: tuple[float, float], count: int) -> int:
    west, east = edges
    return min(max(int((easting - west) // ((east - west) / count)), 0), count - 1)


def _image_ids(folder: str) -> set[str]:
    return {"_".join(name[: -len(".tif")].split("_")[-4:]) for name in os.listdir(folder) if is_visible_tif(name)}
