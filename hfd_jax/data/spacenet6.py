"""SpaceNet 6 (Rotterdam): airborne X-band SAR, optical image and building footprints, 900 x 900 pixels of 0.5 m.

    RAW_DIR/SAR-Intensity/SN6_Train_AOI_11_Rotterdam_SAR-Intensity_T0_T1_tile_N.tif        T0_T1 is the strip
    RAW_DIR/PS-RGB/..._PS-RGB_T0_T1_tile_N.tif                   or PS-RGBNIR
    RAW_DIR/geojson_buildings/..._Buildings_T0_T1_tile_N.geojson   or SummaryData/SN6_Train_..._Buildings.csv
    RAW_DIR/SummaryData/SAR_orientations.txt

The aircraft looked from the north (0) or from the south (1). Tiles of strips with flag 1 are turned by 180 degrees,
all arrays together, so that the radar always looks the same way; a tile's `rotated` says so.

Some twenty passes cover the same ground, so tiles are divided by the easting of their upper left corner:

    baseline    five columns, the eastern one validates: 2696 training and 705 validation tiles, as the challenge's
                baseline and most papers have it. Tiles on the border share ground: 335 training tiles do.
    ten_fold    ten columns; column FOLD tests, the one five further validates, their neighbours are left out. No two
                splits share ground.
"""

import csv
import dataclasses
import functools
import json
import os
from typing import Any

import numpy as np
import rasterio.features
import rasterio.transform
import rasterio.warp
import shapely

from hfd_jax.data.builder import PairedTiles
from hfd_jax.data.facts import Facts
from hfd_jax.data.rasters import Grid, check_same_grid, crs_text, open_raster, read_image, valid_pixels
from hfd_jax.data.tiles import Tile, rotate
from hfd_jax.errors import DataError

AREA = "AOI_11_Rotterdam"
PREFIX = f"SN6_Train_{AREA}"
SAR = "SAR-Intensity"
SAR_BANDS = ("HH", "HV", "VH", "VV")
# The four-band products are stored blue first, in spite of their name.
EO_BANDS = {"PS-RGB": ("R", "G", "B"), "PS-RGBNIR": ("B", "G", "R", "NIR")}
ORIENTATIONS = os.path.join("SummaryData", "SAR_orientations.txt")
SUMMARY = os.path.join("SummaryData", f"{PREFIX}_Buildings.csv")
SPLITTINGS = ("baseline", "ten_fold")
BASELINE_EDGES = (591550.0, 596250.0)  # metres east, EPSG:32631
TEN_FOLD_EDGES = (591640.0, 596160.0)


class Spacenet6(PairedTiles):
    """SpaceNet 6, building footprints."""

    VERSION = PairedTiles.VERSION


@dataclasses.dataclass(frozen=True)
class Spacenet6Source:
    """Reads the training part of SpaceNet 6; a `TileSource`.

    Attributes:
      raw_dir: the folder that holds SAR-Intensity, or one that holds train/AOI_11_Rotterdam.
      eo_product: "PS-RGB" or "PS-RGBNIR".
      splitting: "baseline" or "ten_fold".
      fold: of ten_fold, 0 to 9.
      min_area: smaller footprints are not drawn, square metres.
    """

    raw_dir: str
    eo_product: str = "PS-RGB"
    splitting: str = "ten_fold"
    fold: int = 0
    min_area: float = 0.0

    def __post_init__(self):
        for field, choices in (("eo_product", tuple(EO_BANDS)), ("splitting", SPLITTINGS), ("fold", range(10))):
            if getattr(self, field) not in choices:
                raise DataError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(map(str, choices))}")
        for part in (SAR, self.eo_product):
            if not os.path.isdir(os.path.join(self._root, part)):
                raise DataError(f"{os.path.join(self.raw_dir, part)}: no such folder, nor in train/{AREA} below it")

    @property
    def name(self) -> str:
        splitting = f"ten_fold_{self.fold}" if self.splitting == "ten_fold" else self.splitting
        return splitting + {"PS-RGB": "", "PS-RGBNIR": "_rgbnir"}[self.eo_product]

    @property
    def settings(self) -> dict[str, Any]:
        values = {key: value for key, value in dataclasses.asdict(self).items() if key != "raw_dir"}
        return {**values, "labels": "geojson" if self._has_geojson else "summary", "tiles": len(self._names)}

    @functools.cached_property
    def facts(self) -> Facts:
        present = [path for name in self._names if os.path.exists(path := self._file(self.eo_product, name))]
        if not present:
            raise DataError(f"{os.path.join(self._root, self.eo_product)}: no .tif file in it")
        with open_raster(present[0]) as raster:
            eo_dtype = raster.dtypes[0]
        return Facts(
            name="spacenet6",
            sar_bands=SAR_BANDS,
            eo_bands=EO_BANDS[self.eo_product],
            eo_dtype=eo_dtype,
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
            path = self._file(SAR, name)
            with open_raster(path if os.path.exists(path) else self._file(self.eo_product, name)) as raster:
                split = split_of(raster.transform.c, self.splitting, self.fold)
            if split:
                keys[split].append(name)
        return keys

    def read(self, key: str) -> Tile:
        sar_path, eo_path = self._file(SAR, key), self._file(self.eo_product, key)
        sar, grid = read_image(sar_path, bands=SAR_BANDS)
        eo, eo_grid = read_image(eo_path, bands=self.facts.eo_bands)
        check_same_grid(eo_path, eo_grid, sar_path, grid)
        if key == self._names[0]:
            self._check_band_order(key, eo, eo_path)
        tile = Tile(
            id=key,
            sar=sar.astype(np.float32),
            eo=eo,
            label=self._label(key, grid),
            sar_valid=valid_pixels(sar, 0),
            eo_valid=valid_pixels(eo, 0),
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
        """Image ids T0_T1_tile_N of all tiles; a missing partner is found when the tile is read."""
        names = set().union(*(_image_ids(os.path.join(self._root, part)) for part in (SAR, self.eo_product)))
        if not names:
            raise DataError(f"{os.path.join(self._root, SAR)}: no .tif file in it")
        return sorted(names)

    @functools.cached_property
    def _has_geojson(self) -> bool:
        return os.path.isdir(os.path.join(self._root, "geojson_buildings"))

    @functools.cached_property
    def _orientations(self) -> dict[str, str]:
        path = os.path.join(self._root, ORIENTATIONS)
        if not os.path.exists(path):
            raise DataError(f"{path}: missing; it says from which side each strip was imaged")
        with open(path) as lines:
            return dict(line.split() for line in lines if line.strip())

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
        if not self._has_geojson:
            if name not in self._footprints:
                raise DataError(f"{os.path.join(self._root, SUMMARY)}: has no row for {name}")
            shapes = [shapely.from_wkt(text) for text in self._footprints[name]]
            pixels = rasterio.transform.Affine.identity()
            pixel_area = abs(grid["transform"].a * grid["transform"].e)
            return draw([s for s in shapes if s.area * pixel_area >= self.min_area], grid["size"], pixels)
        path = os.path.join(self._root, "geojson_buildings", f"{PREFIX}_Buildings_{name}.geojson")
        shapes = read_geojson(path, grid["crs"])
        return draw([s for s in shapes if s.area >= self.min_area], grid["size"], grid["transform"])

    def _check_band_order(self, name: str, eo: np.ndarray, path: str) -> None:
        """Where both products are there, the four-band one must show red where the three-band one does."""
        rgb_path, bands = self._file("PS-RGB", name), self.facts.eo_bands
        if self.eo_product == "PS-RGB" or not os.path.exists(rgb_path):
            return
        rgb, _ = read_image(rgb_path, bands=EO_BANDS["PS-RGB"])

        def likeness(red, blue):
            pairs = ((eo[..., red], rgb[..., 0]), (eo[..., blue], rgb[..., 2]))
            return sum(np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in pairs)

        red, blue = bands.index("R"), bands.index("B")
        if likeness(blue, red) > likeness(red, blue):
            raise DataError(f"{path}: its first band looks like the red of {rgb_path}; expected the order {bands}")


def split_of(easting: float, splitting: str, fold: int = 0) -> str | None:
    """The split of a tile by the easting of its upper left corner, metres in EPSG:32631; None where it is left out."""
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
    return {"_".join(name[: -len(".tif")].split("_")[-4:]) for name in os.listdir(folder) if name.endswith(".tif")}


def read_geojson(path: str, crs: Any) -> list[Any]:
    """The polygons of a GeoJSON file as shapely geometries in `crs`; DataError where it cannot be read."""
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file; a tile without buildings has one without features")
    try:
        with open(path) as file:
            text = json.load(file)
        geometries = [feature["geometry"] for feature in text["features"] if feature["geometry"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a GeoJSON feature collection ({error!r})") from error
    # RFC 7946: without a CRS member it is longitude and latitude.
    stored = text.get("crs", {}).get("properties", {}).get("name", "OGC:CRS84")
    if geometries and rasterio.CRS.from_user_input(stored) != crs:
        geometries = rasterio.warp.transform_geom(stored, crs, geometries)
    return [shapely.geometry.shape(geometry) for geometry in geometries]


def read_summary(path: str) -> dict[str, list[str]]:
    """ImageId -> its PolygonWKT_Pix (pixel coordinates, x to the right, y down); no text for an empty tile."""
    if not os.path.exists(path):
        raise DataError(f"{path}: missing, and there is no geojson_buildings folder either: no labels")
    found: dict[str, list[str]] = {}
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        if not {"ImageId", "PolygonWKT_Pix"} <= set(rows.fieldnames or ()):
            raise DataError(f"{path}: columns {rows.fieldnames}; expected ImageId and PolygonWKT_Pix among them")
        for row in rows:
            polygons = found.setdefault(row["ImageId"], [])
            if row["PolygonWKT_Pix"].strip() != "POLYGON EMPTY":
                polygons.append(row["PolygonWKT_Pix"])
    return found


def draw(shapes: list[Any], size: tuple[int, int], transform: Any) -> np.ndarray:
    """[H, W] uint8: 1 in pixels whose centre lies in a polygon."""
    if not shapes:
        return np.zeros(size, np.uint8)
    return rasterio.features.rasterize(
        shapes, out_shape=size, transform=transform, fill=0, default_value=1, dtype="uint8"
    )
