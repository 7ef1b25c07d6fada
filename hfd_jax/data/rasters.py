"""Reading GeoTIFFs through rasterio, with errors that name the file."""

import os

import numpy as np
import rasterio
import rasterio.warp
import rasterio.windows

from hfd_jax.errors import DataError


def open_raster(path: str):
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file")
    try:
        return rasterio.open(path)
    except rasterio.errors.RasterioIOError as error:
        raise DataError(f"{path}: cannot be read as a raster ({error})") from error


def read_window(raster, window) -> np.ndarray:
    try:
        return raster.read(window=window)
    except rasterio.errors.RasterioIOError as error:
        raise DataError(f"{raster.name}: damaged or truncated ({error})") from error


def check_same_grid(path: str, grid, reference_path: str, reference) -> None:
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
