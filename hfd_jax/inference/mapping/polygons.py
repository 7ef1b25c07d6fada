"""Polygons of one class from a class map: GeoTIFF in, GeoPackage or GeoJSON out.

Memory holds one strip of the map, the outlines that continue below it, and the finished polygons.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyogrio
import rasterio
import rasterio.warp
import rasterio.windows
import shapely
from tqdm import tqdm

from hfd_jax.core.errors import ConfigError, DataError, WorkdirError, nearest
from hfd_jax.data.rasters import check_same_grid, open_raster, read_window
from hfd_jax.inference.mapping.components import CONNECTIVITIES, FULL_CONFIDENCE, Pieces, shapes_of, simplified, trace

_WRITE_ERRORS = (
    pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
    pyogrio.errors.FeatureError,
    OSError,
)
DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON"}
STRIP_PIXELS = 2**22
CACHE_BYTES = 2**26  # each block is read once or twice; by default, GDAL would cache blocks in 5 % of the memory
TRUE_TO_AREA = 0.01  # relative error up to which areas are measured in the plane of the CRS


def write_polygons(
    class_map: str,
    confidence: str | None,
    path: str,
    class_name: str,
    *,
    min_area: float = 0.0,
    simplify: float = 1.0,
    connectivity: int = 4,
    strip_pixels: int = STRIP_PIXELS,
) -> int:
    """Writes the connected components of one class as polygons, in the order of their first pixel.

    Fields: id (1, 2, ...), class (its name), area_m2 and, with a raster of confidence, confidence (mean over the
    component's pixels, 0 to 1; null if no pixel has a confidence). The area is that of the pixels and does not depend
    on the simplification. It is measured in the plane of the map's CRS if that preserves areas within 1 % (as UTM
    does), otherwise on the ellipsoid (longitude and latitude, Web Mercator).
    A GeoPackage keeps the map's CRS; GeoJSON is in longitude and latitude (WGS 84), as RFC 7946 requires.

    Args:
      class_map: GeoTIFF with one band of uint8 class indices and the class names as tags CLASS_0, CLASS_1, ...
      confidence: GeoTIFF on the same grid, one band uint8, 0 to 254 for 0 to 1, 255 for no value; or None.
      path: .gpkg or .geojson to write; an existing file is replaced once the new one is complete.
      class_name: the class to outline.
      min_area: square metres; smaller components are dropped.
      simplify: tolerance in pixels (see `components.simplified`); 0 keeps every corner of the pixels.
      connectivity: 4 or 8 neighbours; with 8, parts that touch at a corner are one MultiPolygon.
      strip_pixels: pixels to read at a time; affects only memory and time.

    Returns:
      The number of polygons; if it is 0, the file has no features.

    Raises:
      ConfigError: the map has no such class, or an option is out of range.
      DataError: a raster is missing, damaged, or not as described above.
      WorkdirError: `path` cannot be written.
    """
    _check_options(path, min_area, simplify, connectivity)
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES))
        raster = stack.enter_context(_open_band(class_map))
        names = class_codes(raster)
        if class_name not in names:
            raise ConfigError(f"{class_map}: has no class {class_name!r}; {nearest(class_name, names)}")
        if raster.crs is None:
            raise DataError(f"{class_map}: has no CRS; expected a georeferenced class map")
        other = stack.enter_context(_open_band(confidence)) if confidence else None
        if other:
            check_same_grid(confidence, _grid(other), class_map, _grid(raster))
        ground, crs = Ground(class_map, _grid(raster)), raster.crs.to_wkt()
        parts = [
            _finished(pieces, ground, min_area, simplify)
            for pieces in trace(_strips(raster, other, names[class_name], strip_pixels), connectivity)
        ]
    first, areas, means, shapes = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(first)
    fields = {
        "id": np.arange(1, len(order) + 1, dtype=np.int32),
        "class": np.full(len(order), class_name, object),
        "area_m2": areas[order],
    }
    if confidence:
        fields["confidence"] = means[order]
    _write(path, shapes[order], fields, crs, connectivity)
    return len(order)


def class_codes(raster: Any) -> dict[str, int]:
    """Class name -> index, from the tags CLASS_0, CLASS_1, ... of a raster; raises DataError if there are none."""
    found = {key: re.fullmatch(r"CLASS_(\d+)", key) for key in raster.tags()}
    codes = {raster.tags()[key]: int(match[1]) for key, match in found.items() if match}
    if not codes:
        raise DataError(f"{raster.name}: has no tags CLASS_0, CLASS_1, ... with class names; expected a class map")
    return dict(sorted(codes.items(), key=lambda item: item[1]))


class Ground:
    """Places pixel coordinates in a raster's CRS and measures areas.

    Args:
      path: path of the raster, for error messages.
      grid: size, CRS and transform of the raster.
    """

    def __init__(self, path: str, grid: dict[str, Any]):
        self._crs, self._transform = grid["crs"], grid["transform"]
        height, width = grid["size"]
        pixels = np.array([(x, y) for y in (0, height / 2, height - 1) for x in (0, width / 2, width - 1)])
        pixels = self.placed(shapely.box(*pixels.T, *(pixels.T + 1)))
        try:
            x, y = self._transform @ (width / 2, height / 2)
            (longitude,), _ = rasterio.warp.transform(self._crs, "EPSG:4326", [x], [y])
            # Lambert's cylindrical projection preserves areas everywhere on the ellipsoid.
            self._equal_area = rasterio.CRS.from_user_input(f"+proj=cea +lon_0={longitude} +datum=WGS84 +units=m")
            true = self._on_ellipsoid(pixels)
        except Exception as error:  # GDAL's own errors share no base class that rasterio exports
            raise DataError(f"{path}: areas cannot be measured in the CRS {self._crs} ({error})") from error
        unit = self._crs.linear_units_factor[1] if self._crs.is_projected else 0.0
        plane = abs(self._transform.determinant) * unit**2
        self._pixel = plane if np.all(np.abs(true - plane) <= TRUE_TO_AREA * true) else None

    def placed(self, shapes: np.ndarray) -> np.ndarray:
        """Transforms shapes from pixel coordinates to the CRS."""
        t = self._transform
        matrix, offset = np.array([[t.a, t.d], [t.b, t.e]]), np.array([t.c, t.f])
        return shapely.transform(shapes, lambda xy: xy @ matrix + offset)

    def areas(self, pixels: np.ndarray, shapes: np.ndarray) -> np.ndarray:
        """Returns areas in square metres from pixel counts [N] and outlines [N] in pixel coordinates."""
        return self._on_ellipsoid(self.placed(shapes)) if self._pixel is None else pixels * self._pixel

    def _on_ellipsoid(self, shapes: np.ndarray) -> np.ndarray:
        def project(xy):
            return np.stack(rasterio.warp.transform(self._crs, self._equal_area, *xy.T), -1)

        return shapely.area(shapely.transform(shapes, project))


def _check_options(path: str, min_area: float, simplify: float, connectivity: int) -> None:
    extension = os.path.splitext(path)[1]
    if extension not in DRIVERS:
        raise ConfigError(f"{path}: ends in {extension!r}; expected {' or '.join(DRIVERS)}")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise WorkdirError(f"{path}: cannot be written (there is no folder {folder})")
    for name, value in (("min_area", min_area), ("simplify", simplify)):
        if not 0 <= value < np.inf:
            raise ConfigError(f"{name} is {value}; expected 0 or more")
    if connectivity not in CONNECTIVITIES:
        raise ConfigError(f"connectivity is {connectivity}; expected one of {CONNECTIVITIES}")


def _open_band(path: str) -> Any:
    raster = open_raster(path)
    if raster.count != 1 or raster.dtypes[0] != "uint8":
        found = f"{raster.count} bands of {raster.dtypes[0]}"
        raster.close()
        raise DataError(f"{path}: {found}; expected one band of uint8")
    return raster


def _grid(raster: Any) -> dict[str, Any]:
    return {"size": raster.shape, "crs": raster.crs, "transform": raster.transform}


def _strips(raster: Any, confidence: Any, code: int, pixels: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    height, width = raster.shape
    rows = max(1, pixels // width)
    with tqdm(total=height, desc="polygons", unit="row", delay=5, leave=False) as progress:
        for top in range(0, height, rows):
            window = rasterio.windows.Window(0, top, width, min(rows, height - top))
            mask = read_window(raster, window)[0] == code
            yield mask, read_window(confidence, window)[0] if confidence else None
            progress.update(window.height)


def _finished(pieces: Pieces, ground: Ground, min_area: float, simplify: float) -> tuple[np.ndarray, ...]:
    """Returns (first pixel, square metres, mean confidence, WKB in the map's CRS) of complete components."""
    shapes = shapes_of(pieces)
    areas = ground.areas(pieces.pixels, shapes)
    large = areas >= min_area
    shapes, areas, pieces = shapes[large], areas[large], pieces.select(large)
    known = pieces.confident > 0
    means = np.where(known, pieces.confidence / np.maximum(pieces.confident, 1) / FULL_CONFIDENCE, np.nan)
    placed = ground.placed(simplified(shapes, simplify) if simplify else shapes)
    return pieces.first, areas, means, shapely.to_wkb(placed)


def _write(path: str, shapes: np.ndarray, fields: dict[str, np.ndarray], crs: str, connectivity: int) -> None:
    root, extension = os.path.splitext(path)
    temporary = f"{root}.{os.getpid()}.tmp{extension}"
    try:
        pyogrio.raw.write(
            temporary,
            geometry=shapes,
            field_data=list(fields.values()),
            fields=list(fields),
            layer=os.path.basename(root),
            driver=DRIVERS[extension],
            geometry_type="Polygon" if connectivity == 4 else "MultiPolygon",
            promote_to_multi=connectivity == 8,
            crs=crs,
            # GDAL then converts coordinates to longitude and latitude and orients the rings as the RFC requires.
            layer_options={"RFC7946": "YES"} if extension == ".geojson" else {},
        )
        os.replace(temporary, path)
    except _WRITE_ERRORS as error:
        raise WorkdirError(f"{path}: cannot be written ({error})") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
