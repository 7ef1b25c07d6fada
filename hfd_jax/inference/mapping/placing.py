"""What a scene's georeference says: which way the image is turned, and whether polygons can outline its map."""

from typing import Any

from hfd_jax.core.errors import DataError
from hfd_jax.data.augment import flip_axes


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


def check_outlines(path: str, georeference: dict[str, Any]) -> None:
    """Raises DataError if the map of a scene cannot be outlined by polygons."""
    if georeference["crs"] is None or "gcps" in georeference:
        why = "has no CRS" if georeference["crs"] is None else "is placed by ground control points only"
        raise DataError(f"{path}: {why}; --polygons needs a georeferenced scene. Nothing was computed for it")
