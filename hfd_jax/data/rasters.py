"""Reading GeoTIFFs through rasterio, with errors that name the file."""

import contextlib
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import rasterio
import rasterio.warp
import rasterio.windows

from hfd_jax.core.errors import DataError

LARGEST_EDGE = 200_000  # pixels; the largest satellite mosaics have about half as many
MOST_BYTES = 2**31  # of one read


class RasterError(DataError):
    """A raster is missing or cannot be read."""


Grid = dict[str, Any]  # "size" (rows, columns) of the whole raster, "crs", "transform", "nodata"


def open_raster(path: str):
    if not os.path.exists(path):
        raise RasterError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            # Some published tiles have no georeference; `check_same_grid` compares what they have.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            raster = rasterio.open(path)
    except rasterio.errors.RasterioIOError as error:
        raise RasterError(f"{path}: cannot be read as a raster ({error})") from error
    if max(raster.shape) > LARGEST_EDGE:
        raise RasterError(
            f"{path}: has {raster.shape} pixels (rows, columns); expected at most {LARGEST_EDGE} in each direction"
        )
    return raster


def read_window(raster, window=None, bands: Sequence[int] | None = None) -> np.ndarray:
    """[bands, H, W] of a window (default: the whole raster) and of bands, counted from 1 (default: all)."""
    height, width = (window.height, window.width) if window else raster.shape
    dtypes = [raster.dtypes[band - 1] for band in bands or raster.indexes]
    size = height * width * sum(np.dtype(dtype).itemsize for dtype in dtypes)
    if size > MOST_BYTES:
        raise RasterError(
            f"{raster.name}: {size / 2**30:.1f} GiB to read at once; expected at most {MOST_BYTES / 2**30:g} GiB"
        )
    with reading(raster):
        return raster.read(bands, window=window)


@contextlib.contextmanager
def reading(raster) -> Iterator[None]:
    """Converts GDAL errors while reading pixels of `raster` into a RasterError."""
    try:
        yield
    except rasterio.errors.RasterioIOError as error:
        raise RasterError(f"{raster.name}: damaged or truncated ({error})") from error


def read_image(path: str, window=None, bands: tuple[str, ...] | None = None) -> tuple[np.ndarray, Grid]:
    """Reads a raster, or a window of it.

    Args:
      path: path of the file.
      window: rasterio window; None for the whole raster.
      bands: names of the bands that it must have.

    Returns:
      ([H, W, bands] as stored, the whole raster's grid).

    Raises:
      DataError: the file is missing or damaged, or has another number of bands.
    """
    with open_raster(path) as raster:
        if bands is not None and raster.count != len(bands):
            raise DataError(f"{path}: {raster.count} bands; expected {len(bands)} ({', '.join(bands)})")
        grid = {"size": raster.shape, "crs": raster.crs, "transform": raster.transform, "nodata": raster.nodata}
        return np.moveaxis(read_window(raster, window), 0, -1), grid


def stored_type(paths: Iterable[str], folder: str) -> str:
    """NumPy name of the pixel type of the first existing raster; DataError, naming `folder`, if there is none."""
    for path in paths:
        if os.path.exists(path):
            with open_raster(path) as raster:
                return raster.dtypes[0]
    raise DataError(f"{folder}: contains no .tif file")


def valid_pixels(image: np.ndarray, nodata: float | None) -> np.ndarray:
    """[H, W] bool: False where any band is NaN or infinite, or all bands have the value `nodata`."""
    valid = np.isfinite(image).all(-1) if image.dtype.kind == "f" else np.ones(image.shape[:2], bool)
    if nodata is not None and not np.isnan(nodata):
        valid &= (image != nodata).any(-1)
    return valid


def check_same_grid(path: str, grid: Grid, reference_path: str, reference: Grid) -> None:
    """Raises DataError if size or CRS differ, or a corner is off by more than half a pixel."""
    if grid["size"] != reference["size"]:
        raise DataError(f"{path}: {grid['size']} pixels (rows, columns); {reference_path} has {reference['size']}")
    if grid["crs"] != reference["crs"]:
        raise DataError(f"{path}: CRS {grid['crs']}; {reference_path} has {reference['crs']}")
    # The corners, in pixels of the reference, show an offset, another pixel size and a rotation alike.
    height, width = grid["size"]
    to_pixel = ~reference["transform"] @ grid["transform"]
    corners = np.array([[0, 0], [0, width], [height, 0], [height, width]], float)
    moved = np.array([(to_pixel @ (x, y))[::-1] for y, x in corners])
    offset = np.abs(moved - corners).max()
    if offset > 0.5:
        raise DataError(
            f"{path}: {offset:.2f} pixels off the grid of {reference_path}; at most half a pixel is accepted"
        )


def crs_text(grid: Grid) -> str:
    return grid["crs"].to_string() if grid["crs"] else ""


def cut_blocks(height: int, width: int, largest: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Divides a raster into blocks of nearly equal size; returns [(rows [start, stop), columns [start, stop))]."""
    return [(rows, columns) for rows in cut(0, height, largest) for columns in cut(0, width, largest)]


def cut(start: int, stop: int, largest: int) -> list[tuple[int, int]]:
    """Divides [start, stop) into parts of nearly equal length, at most `largest`."""
    count = max(1, -(-(stop - start) // largest))
    edges = np.linspace(start, stop, count + 1).round().astype(int).tolist()
    return list(itertools.pairwise(edges))
