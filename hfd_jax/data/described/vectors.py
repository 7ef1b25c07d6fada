"""Labels from a vector file: polygons with a class column, drawn onto the grid of the SAR file."""

import collections
import os
import warnings
from typing import Any

import numpy as np
import pyogrio
import rasterio
import rasterio.features
import rasterio.warp
import rasterio.windows
import shapely

from hfd_jax.core.errors import DataError, nearest
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data.described.description import Classes
from hfd_jax.data.rasters import Grid


class VectorLabels:
    """Draws polygons as class indices; later features cover earlier ones.

    Args:
      classes: of the description; its codes are values of `classes.column`.
      source: path of the description, for messages.
    """

    def __init__(self, classes: Classes, source: str):
        self._classes, self._source = classes, source
        self._index = {str(code): k for k, own in enumerate(classes.codes) for code in own}
        self._index |= {str(code): IGNORE_LABEL for code in classes.ignore}
        self._outside = classes.names.index(classes.outside) if classes.outside else IGNORE_LABEL

    def read(self, path: str, window: Any, grid: Grid) -> np.ndarray:
        """[H, W] uint8 class indices of a window of the SAR grid.

        Raises:
          DataError: the file cannot be read, has no CRS, column or single layer, or a value is no class.
        """
        if grid["crs"] is None:
            raise DataError(f"{path}: the SAR raster has no CRS; polygons need one")
        transform = rasterio.windows.transform(window, grid["transform"])
        size = (round(window.height), round(window.width))
        shapes, values = self._features(path, grid["crs"], rasterio.windows.bounds(window, grid["transform"]))
        codes = [_text(value) for value in values]
        unknown = [code for code in codes if code not in self._index]
        if unknown:
            found = ", ".join(f"{code!r} ({count})" for code, count in collections.Counter(codes).most_common(12))
            raise DataError(
                f"{path}: {self._classes.column} {unknown[0]!r} is unknown; {self._source} lists "
                f"{', '.join(self._index)}; found: {found}"
            )
        pairs = [(shape, self._index[code]) for shape, code in zip(shapes, codes, strict=True) if not shape.is_empty]
        if not pairs:
            return np.full(size, self._outside, np.uint8)
        return rasterio.features.rasterize(
            pairs, out_shape=size, transform=transform, fill=self._outside, dtype="uint8"
        )

    def _features(self, path: str, crs: Any, bounds: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(geometries in `crs`, values of the column) of the features that touch the bounds."""
        if not os.path.exists(path):
            raise DataError(f"{path}: no such file")
        column = self._classes.column
        try:
            layer = self._layer(path)
            info = pyogrio.read_info(path, layer=layer)
            if column not in info["fields"]:
                raise DataError(f"{path}: has no column {column!r}; {nearest(column, info['fields'])}")
            if not info["crs"]:
                raise DataError(f"{path}: has no CRS; expected one, to place the polygons on the SAR raster")
            stored = rasterio.CRS.from_user_input(info["crs"])
            box = rasterio.warp.transform_bounds(crs, stored, *bounds)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _, _, geometry, fields = pyogrio.raw.read(path, layer=layer, columns=[column], bbox=box)
            shapes = shapely.from_wkb(geometry)
            keep = ~shapely.is_missing(shapes)
            shapes, values = shapes[keep], fields[0][keep]
            if stored != crs:
                shapes = shapely.transform(shapes, lambda xy: np.stack(rasterio.warp.transform(stored, crs, *xy.T), -1))
        except DataError:
            raise
        except Exception as error:  # GDAL's own errors share no base class that pyogrio and rasterio export
            raise DataError(f"{path}: cannot be read as polygons ({error})") from error
        return shapes, values

    def _layer(self, path: str) -> str:
        layers = [name for name, kind in pyogrio.list_layers(path) if kind is not None]
        if self._classes.layer:
            if self._classes.layer not in layers:
                raise DataError(f"{path}: has no layer {self._classes.layer!r}; {nearest(self._classes.layer, layers)}")
            return self._classes.layer
        if len(layers) != 1:
            raise DataError(f"{path}: has the layers {', '.join(layers)}; choose one with label.layer")
        return layers[0]


def _text(value: Any) -> str:
    """A value of a column as the description has it: 3.0, from a column with gaps, is 3."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)
