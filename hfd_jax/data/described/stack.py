"""Reads the rasters of one sensor as one image on the grid of the first SAR file."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.vrt import WarpedVRT

from hfd_jax.core.errors import DataError
from hfd_jax.data.described.description import TAG, Sensor
from hfd_jax.data.rasters import Grid, check_same_grid, data_bands, grid_of, open_raster, read_pixels, read_window

_SOME_CRS = "EPSG:3857"  # for rasters without georeference, whose corners are taken to agree


def read_stack(
    paths: Sequence[str], kind: str, sensor: Sensor, window: Any, reference: tuple[str, Grid] | None
) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Reads a window of the stacked bands of one sensor.

    Args:
      paths: of its files.
      kind: "sar" or "eo", for messages.
      sensor: what they should hold.
      window: rasterio window on the reference grid.
      reference: (path, grid) of the first SAR file; None if that is the first of `paths`.

    Returns:
      ([H, W, bands], valid [H, W] bool, the reference grid).

    Raises:
      DataError: a file is missing or damaged, has another number of bands, or is on another grid.
    """
    parts: dict[int, np.ndarray] = {}
    valid = empty = None
    with contextlib.ExitStack() as stack:
        rasters = [stack.enter_context(open_raster(path)) for path in paths]
        reference = reference or (paths[0], grid_of(rasters[0]))
        for raster, chosen in zip(rasters, choose_bands(rasters, kind, sensor), strict=True):
            if not chosen:
                continue
            with on_grid(raster, kind, *reference, sensor.resample, sensor.nodata) as view:
                same = view is raster
                image, good, none = read_pixels(view, window, [*chosen.values()], sensor.nodata if same else None)
                if not same:
                    good &= covered(view, window)
            parts |= {place: image[..., k] for k, place in enumerate(chosen)}
            valid, empty = (good, none) if valid is None else (valid & good, empty & none)
    if len(paths) == 1 and list(parts) == sorted(parts):
        return image, valid & ~empty, reference[1]
    return np.stack([parts[place] for place in sorted(parts)], -1), valid & ~empty, reference[1]


def choose_bands(rasters: Sequence[Any], kind: str, sensor: Sensor) -> list[dict[int, int]]:
    """Place in the stack -> band, from 1, for each file; raises DataError if they are not those described."""
    available = [data_bands(raster) for raster in rasters]
    wanted = sensor.band_numbers or tuple(range(1, len(sensor.bands) + 1))
    if len(rasters) == 1 and rasters[0].count in (len(sensor.bands), max(wanted)):
        available = [list(rasters[0].indexes)]  # of four bands, a fourth one that is called alpha may be any
    flat = [(file, band) for file, bands in enumerate(available) for band in bands]
    if (not sensor.band_numbers and len(flat) != len(sensor.bands)) or max(wanted) > len(flat):
        more = f" and {len(rasters) - 1} more file(s)" if len(rasters) > 1 else ""
        expected = f"expected {len(sensor.bands)} ({', '.join(sensor.bands)})"
        if sensor.band_numbers:
            expected = f"{kind}.band_numbers has {max(wanted)}"
        elif len(flat) > len(sensor.bands):
            expected += f"; {kind}.band_numbers chooses some of them"
        raise DataError(f"{rasters[0].name}{more}: {len(flat)} bands; {expected}")
    chosen = [flat[number - 1] for number in wanted]
    return [{place: band for place, (of, band) in enumerate(chosen) if of == file} for file in range(len(rasters))]


@contextlib.contextmanager
def on_grid(
    raster, kind: str, reference_path: str, reference: Grid, resample: str, nodata: float | str | None = TAG
) -> Iterator[Any]:
    """Yields `raster` if it is on the reference grid, or a view of it that is resampled onto that grid.

    Raises:
      DataError: the grids differ, and `resample` is "".
    """
    grid = grid_of(raster)
    try:
        check_same_grid(raster.name, grid, reference_path, reference)
        same = True
    except DataError as error:
        same = False
        if not resample:
            raise DataError(f"{error}; {kind}.resample in the description would resample it") from error
    if same:
        yield raster
        return
    if (grid["crs"] is None) != (reference["crs"] is None):
        lacking = raster.name if grid["crs"] is None else reference_path
        raise DataError(f"{lacking}: has no CRS, and cannot be resampled onto or from a grid that has one")
    source = {"src_crs": grid["crs"], "src_transform": grid["transform"]}
    target = {"crs": reference["crs"], "transform": reference["transform"]}
    if grid["crs"] is None:
        rows, columns = np.divide(reference["size"], grid["size"])
        source = {"src_crs": _SOME_CRS, "src_transform": rasterio.Affine.scale(columns, -rows)}
        target = {"crs": _SOME_CRS, "transform": rasterio.Affine.scale(1, -1)}
    value = raster.nodata if nodata == TAG else nodata
    alpha = ColorInterp.alpha in raster.colorinterp
    height, width = reference["size"]
    try:
        view = WarpedVRT(
            raster, **source, **target, height=height, width=width, resampling=Resampling[resample],
            src_nodata=value, add_alpha=not alpha, UNIFIED_SRC_NODATA="YES",
        )  # fmt: skip
    except (rasterio.errors.RasterioError, ValueError) as error:
        raise DataError(f"{raster.name}: cannot be resampled onto the grid of {reference_path} ({error})") from error
    with view:
        yield view


def covered(view: WarpedVRT, window: Any) -> np.ndarray:
    """[H, W] bool: where a resampled view has data; its last band says so."""
    return read_window(view, window, [view.count])[0] > 0
