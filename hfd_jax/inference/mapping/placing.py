"""What a scene's georeference says about its pixels: their size on the ground, and which way the image is turned."""

import math
from typing import Any

from hfd_jax.core.errors import DataError
from hfd_jax.data.augment import flip_axes

METRES_PER_DEGREE = 111_195  # along a meridian
SMALLEST = 0.01  # metres; what is below was measured in degrees
TOLERATED = 1.5  # ratio of pixel sizes


def reversed_axes(georeference: dict[str, Any], look_axis: str) -> tuple[int, ...]:
    """Axes of the [H, W] image to reverse so that the radar looks as in north-up images.

    A south-up image shows the scene mirrored from north to south. That matters only if it reverses the look direction.

    Args:
      georeference: "crs" with "transform" or "gcps".
      look_axis: of the training data.
    """
    crs, transform = georeference["crs"], georeference.get("transform")
    if crs is None or transform is None:
        return ()
    found = {0: transform.e > 0, 1: transform.a < 0}
    return tuple(axis for axis, is_reversed in found.items() if is_reversed and axis not in flip_axes(look_axis))


def pixel_size(georeference: dict[str, Any], shape: tuple[int, int]) -> float | None:
    """Edge of a pixel in metres, at the centre of the image [rows, columns]; None if unknown."""
    crs, transform = georeference["crs"], georeference.get("transform")
    if crs is None or transform is None:
        return None
    edge = math.sqrt(abs(transform.determinant))
    if crs.is_projected:
        return edge * crs.linear_units_factor[1]
    _, latitude = transform @ (shape[1] / 2, shape[0] / 2)
    return (
        edge * METRES_PER_DEGREE * math.sqrt(max(math.cos(math.radians(latitude)), 0.0)) if crs.is_geographic else None
    )


def size_remark(found: float | None, trained: float | None) -> str:
    """A remark if pixels differ much in size from those that the network was trained on, else ""; sizes in metres."""
    if not found or not trained or trained < SMALLEST or 1 / TOLERATED <= found / trained <= TOLERATED:
        return ""
    return (
        f"its pixels are {found:.3g} m wide, those of the training data {trained:.3g} m: the map may be "
        "poor; resample the scene"
    )


def check_outlines(path: str, georeference: dict[str, Any]) -> None:
    """Raises DataError if the map of a scene cannot be outlined by polygons."""
    if georeference["crs"] is None or "gcps" in georeference:
        why = "has no CRS" if georeference["crs"] is None else "is placed by ground control points only"
        raise DataError(f"{path}: {why}; --polygons needs a georeferenced scene. Nothing was computed for it")
