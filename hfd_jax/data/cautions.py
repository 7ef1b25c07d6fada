"""What a user should know about a data set as a whole, though every tile of it is valid."""

import functools
from collections.abc import Mapping

import numpy as np

from hfd_jax.data.facts import Facts
from hfd_jax.data.tiles import Tile

SAME_SIZE = 1.5  # pixels within this ratio count as of one size; degrees shrink towards the poles


def pixel_edge(tile: Tile) -> float:
    """Edge of a pixel of a tile, metres; 0 if the tile has no CRS."""
    if not tile.crs:
        return 0.0
    import rasterio  # noqa: PLC0415 - simulated scenes, which have no CRS, need no rasterio

    from hfd_jax.data.rasters import pixel_metres  # noqa: PLC0415

    grid = {"crs": _crs(tile.crs), "transform": rasterio.Affine(*tile.transform), "size": tile.sar.shape[:2]}
    return pixel_metres(grid)


def cautions(facts: Facts, class_pixels: Mapping[str, np.ndarray], edges: Mapping[str, np.ndarray]) -> list[str]:
    """Remarks on classes that training lacks and on mixed pixel sizes.

    Args:
      facts: of the data set.
      class_pixels: split -> labelled pixels of every class.
      edges: split -> edge of a pixel of every tile, metres; 0 if unknown.
    """
    return _lacking_classes(facts, class_pixels) + _mixed_sizes(edges)


def _lacking_classes(facts: Facts, class_pixels: Mapping[str, np.ndarray]) -> list[str]:
    if "train" not in class_pixels or not any(map(np.any, class_pixels.values())):
        return []
    found = []
    for index in np.flatnonzero(np.asarray(class_pixels["train"]) == 0):
        elsewhere = [split for split, pixels in class_pixels.items() if pixels[index]]
        where = f"; {' and '.join(elsewhere)} tiles have it" if elsewhere else ", nor has any other tile"
        found.append(f"no training tile has class {facts.class_names[index]!r}{where}")
    return found


def _mixed_sizes(edges: Mapping[str, np.ndarray]) -> list[str]:
    known = np.concatenate([np.asarray(of_split, float) for of_split in edges.values()] or [np.zeros(0)])
    known = known[known > 0]
    if not len(known) or known.max() <= SAME_SIZE * known.min():
        return []
    values, counts = np.unique([float(f"{edge:.2g}") for edge in known], return_counts=True)
    listed = ", ".join(f"{count} of {edge:g} m" for edge, count in list(zip(values, counts, strict=True))[:8])
    return [f"tiles have pixels of different sizes ({listed}); a network learns structures at one pixel size"]


@functools.lru_cache(maxsize=512)
def _crs(text: str):
    import rasterio  # noqa: PLC0415 - see `pixel_edge`

    return rasterio.CRS.from_string(text)
