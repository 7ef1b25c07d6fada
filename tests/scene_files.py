"""Scenes and maps as files, for tests of tools.predict."""

import warnings

import numpy as np
import rasterio
from rasterio.transform import from_origin

from tools import predict as tool

UTM = {"crs": "EPSG:32631", "transform": from_origin(592000, 5750000, 1, 1)}


def write(path, image, nodata=None, names=(), **georeference):
    """Writes an image [H, W, bands] as a GeoTIFF."""
    height, width, count = image.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", width=width, height=height, count=count, dtype=image.dtype, nodata=nodata,
            **(georeference or UTM),
        ) as raster:  # fmt: skip
            raster.write(np.moveaxis(image, -1, 0))
            for band, name in enumerate(names, 1):
                raster.set_band_description(band, name)
    return str(path)


def read(path):
    with rasterio.open(path) as raster:
        return raster.read()


def run_tool(*arguments):
    tool.main(tool.make_parser().parse_args([f"--{argument}" for argument in arguments]))
