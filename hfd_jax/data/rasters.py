"""Reading GeoTIFFs through rasterio, with errors that name the file."""

import contextlib
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import rasterio
import rasterio.transform
import rasterio.windows
from rasterio.enums import ColorInterp, MaskFlags

from hfd_jax.core.errors import DataError

LARGEST_EDGE = 200_000  # pixels; the largest satellite mosaics have about half as many
MOST_BYTES = 2**31  # of one read
TAG = "tag"  # nodata: the raster's own nodata tag
METRES_PER_DEGREE = 111_320.0  # at the equator
NO_COMPLEX = "expected intensity, amplitude or dB: take the squared magnitude of single-look complex data first"


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
    if any(map(is_complex, dtypes)):
        raise RasterError(f"{raster.name}: is complex ({dtypes[0]}); {NO_COMPLEX}")
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
    """Reads a raster, or a window of it; see `read_bands`.

    Returns:
      ([H, W, bands], the whole raster's grid).
    """
    image, _, grid = read_bands(path, window, bands)
    return image, grid


def read_bands(
    path: str, window=None, bands: Sequence[str] | None = None, nodata: float | str | None = TAG
) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Reads the bands of a raster, or of a window of it; scale and offset tags are applied.

    Args:
      path: path of the file.
      window: rasterio window; None for the whole raster.
      bands: names of the bands that it must have; an alpha band may follow them.
      nodata: value of pixels without data, before scale and offset; None for no such value, TAG for the raster's tag.

    Returns:
      ([H, W, bands] as stored, or float32 if there are scale or offset tags; valid [H, W] bool; the raster's grid).

    Raises:
      DataError: the file is missing or damaged, has another number of bands, or is complex.
    """
    with open_raster(path) as raster:
        numbers = data_bands(raster)
        if bands is not None and len(numbers) != len(bands):
            numbers = list(raster.indexes)  # of four bands, a fourth one that is called alpha may be any
        if bands is not None and len(numbers) != len(bands):
            raise DataError(f"{path}: {len(numbers)} bands; expected {len(bands)} ({', '.join(bands)})")
        image, valid, empty = read_pixels(raster, window, numbers, nodata)
        return image, valid & ~empty, grid_of(raster)


def read_pixels(
    raster, window, numbers: Sequence[int], nodata: float | str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads bands of an open raster, with scale and offset tags applied.

    Args:
      raster: as `open_raster` returns it, or a WarpedVRT of it.
      window: rasterio window; None for the whole raster.
      numbers: bands to read, from 1.
      nodata: see `read_bands`.

    Returns:
      ([H, W, bands]; valid [H, W] bool, False where a band is NaN or infinite or a mask says so; empty [H, W] bool,
      True where all bands have the value `nodata`).
    """
    image = np.moveaxis(read_window(raster, window, numbers), 0, -1)
    values = [raster.nodatavals[k - 1] for k in numbers] if nodata == TAG else [nodata] * len(numbers)
    valid = valid_pixels(image, None)
    empty = np.zeros(valid.shape, bool)
    if None not in values and not np.isnan(np.array(values, float)).any():
        empty = (image == np.array(values, float)).all(-1)
    if has_mask(raster, numbers):
        with reading(raster):
            valid &= raster.dataset_mask(window=window) > 0
    tags = scale_tags(raster, numbers)
    if tags is not None:
        image = (image * tags[0] + tags[1]).astype(np.float32)
    return image, valid, empty


def data_bands(raster) -> list[int]:
    """The bands of a raster, from 1, without an alpha band at the end."""
    numbers = list(raster.indexes)
    alpha = len(numbers) > 1 and raster.colorinterp[-1] == ColorInterp.alpha
    return numbers[:-1] if alpha else numbers


def has_mask(raster, numbers: Sequence[int]) -> bool:
    """Whether a mask of the raster, or an alpha band that is not among `numbers`, says which pixels have data."""
    flags = [set(raster.mask_flag_enums[k - 1]) for k in numbers]
    if not any(MaskFlags.per_dataset in of_band for of_band in flags):
        return False
    alpha = [k for k, meaning in zip(raster.indexes, raster.colorinterp, strict=True) if meaning == ColorInterp.alpha]
    return not (any(MaskFlags.alpha in of_band for of_band in flags) and set(alpha) & set(numbers))


def scale_tags(raster, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """(scales, offsets) of the bands `numbers`; None if no band has any. RasterError if they leave no values."""
    scales, offsets = (np.array([tags[k - 1] for k in numbers], float) for tags in (raster.scales, raster.offsets))
    if not (np.isfinite(scales) & np.isfinite(offsets) & (scales != 0)).all():
        raise RasterError(
            f"{raster.name}: its tags are scale {scales.tolist()}, offset {offsets.tolist()}; expected finite numbers, "
            "and no scale of 0: remove them (gdal_edit.py -unsetscale -unsetoffset)"
        )
    return None if (scales == 1).all() and (offsets == 0).all() else (scales, offsets)


def is_complex(dtype: str) -> bool:
    return dtype.startswith("complex")  # also GDAL's complex_int16, which NumPy does not know


def grid_of(raster) -> Grid:
    """Size, CRS, transform and nodata tag; ground control points place a raster if an affine transform fits them.

    Raises:
      RasterError: the raster is placed by ground control points that no affine transform fits to half a pixel, or by
        rational polynomials, or its transform gives a pixel no area.
    """
    crs, transform = raster.crs, raster.transform
    if crs is None and raster.gcps[0]:
        transform, crs = _from_gcps(raster), raster.gcps[1]
    elif crs is None and transform.is_identity and raster.rpcs:
        raise RasterError(
            f"{raster.name}: is placed by rational polynomials (RPC) alone; expected a CRS and a transform: "
            "orthorectify it first (gdalwarp -rpc)"
        )
    if not np.isfinite(transform).all() or transform.determinant == 0:
        raise RasterError(f"{raster.name}: its transform {tuple(transform)[:6]} gives a pixel no area")
    return {"size": raster.shape, "crs": crs, "transform": transform, "nodata": raster.nodata}


def _from_gcps(raster):
    points = raster.gcps[0]
    transform = rasterio.transform.from_gcps(points)
    if transform.determinant == 0:  # the points lie on a line
        return transform
    to_pixel = ~transform
    off = [np.hypot(*np.subtract(to_pixel @ (point.x, point.y), (point.col, point.row))) for point in points]
    if len(points) < 3 or max(off) > 0.5:
        raise RasterError(
            f"{raster.name}: is placed by {len(points)} ground control points, which no affine transform fits "
            f"(up to {max(off):.1f} pixels off); expected a CRS and a transform: warp it first (gdalwarp -tps)"
        )
    return transform


def pixel_metres(grid: Grid) -> float:
    """Edge of a square with the area of the central pixel, metres; 0 without a CRS."""
    crs, transform = grid["crs"], grid["transform"]
    if crs is None:
        return 0.0
    edge = abs(transform.determinant) ** 0.5
    if crs.is_projected:
        return edge * crs.linear_units_factor[1]
    height, width = grid["size"]
    latitude = (transform @ (width / 2, height / 2))[1]
    return edge * METRES_PER_DEGREE * abs(np.cos(np.radians(latitude))) ** 0.5


def stored_type(paths: Iterable[str], folder: str) -> str:
    """NumPy name of the pixel type of the first existing raster; DataError, naming `folder`, if there is none."""
    for path in paths:
        if os.path.exists(path):
            with open_raster(path) as raster:
                if is_complex(raster.dtypes[0]):
                    raise RasterError(f"{path}: is complex; {NO_COMPLEX}")
                return "float32" if scale_tags(raster, raster.indexes) else raster.dtypes[0]
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
        names = [part["crs"].to_string() if part["crs"] else "none" for part in (grid, reference)]
        raise DataError(f"{path}: CRS {names[0]}; {reference_path} has {names[1]}")
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


def is_visible_tif(name: str) -> bool:
    """Whether a file name ends in .tif and is not hidden: macOS adds ._NAME.tif on foreign file systems."""
    return name.endswith(".tif") and not name.startswith(".")


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
