"""Finds tiles of different splits that show the same ground."""

import itertools
from collections.abc import Sequence

import numpy as np

from hfd_jax.data.longitudes import unwrapped
from hfd_jax.data.tiles import Tile

# Overlap that does not count, as a share of the smaller tile's area: half a pixel along the edge of a 500-pixel tile,
# or rounding at a shared edge.
TOLERATED = 0.002
LONGITUDE_LATITUDE = "EPSG:4326"


def corners(tile: Tile) -> np.ndarray:
    """[4, 2] float64: x and y of the corners of a tile in its CRS; NaN if the tile has no CRS."""
    if not tile.crs:
        return np.full((4, 2), np.nan)
    height, width = tile.sar.shape[:2]
    a, b, c, d, e, f = tile.transform
    pixels = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    return pixels @ np.array([[a, d], [b, e]]) + (c, f)


def shared_ground(parts: dict[str, tuple[np.ndarray, Sequence[str]]]) -> dict[str, list[tuple[int, int]]]:
    """Pairs of tiles from different splits that overlap by more than `TOLERATED`.

    Args:
      parts: split -> (corners [N, 4, 2], CRS of each tile); tiles without CRS are left out.

    Returns:
      "train/test" -> [(index in train, index in test)], for every pair of splits that share ground.
    """
    systems = {crs for _, names in parts.values() for crs in names if crs}
    if not systems:
        return {}
    import rasterio  # noqa: PLC0415 - simulated scenes, which have no CRS, need neither
    import shapely  # noqa: PLC0415

    # Tiles in several zones are compared in longitude and latitude.
    common = next(iter(systems)) if len(systems) == 1 else LONGITUDE_LATITUDE
    placed = {split: _placed(*part, common) for split, part in parts.items()}
    if rasterio.CRS.from_user_input(common).is_geographic:
        longitudes = unwrapped(np.concatenate([points[..., 0] for points, _ in placed.values()]))
        for points, _ in placed.values():
            points[..., 0], longitudes = longitudes[: len(points)], longitudes[len(points) :]
    polygons = {split: (shapely.polygons(points), index) for split, (points, index) in placed.items()}
    found = {}
    for one, other in itertools.combinations(polygons, 2):
        (a, a_index), (b, b_index) = polygons[one], polygons[other]
        pairs = shapely.STRtree(b).query(a, predicate="intersects") if len(a) and len(b) else ([], [])
        i, j = (np.asarray(index, int) for index in pairs)
        smaller = np.minimum(shapely.area(a[i]), shapely.area(b[j]))
        overlaps = shapely.area(shapely.intersection(a[i], b[j])) > TOLERATED * smaller
        if overlaps.any():
            found[f"{one}/{other}"] = sorted(
                zip(a_index[i[overlaps]].tolist(), b_index[j[overlaps]].tolist(), strict=True)
            )
    return found


def _placed(points: np.ndarray, names: Sequence[str], common: str) -> tuple[np.ndarray, np.ndarray]:
    """(corners [N, 4, 2] in the CRS `common` of the tiles that have a CRS, positions of these tiles)."""
    import rasterio.warp  # noqa: PLC0415 - see `shared_ground`

    names = np.asarray(names, str)
    index = np.flatnonzero(names != "")
    points = np.array(points, np.float64).reshape(-1, 4, 2)
    for crs in np.unique(names[index]):
        if crs != common:
            of_crs = names == crs
            x, y = rasterio.warp.transform(crs, common, *points[of_crs].reshape(-1, 2).T)
            points[of_crs] = np.stack([x, y], -1).reshape(-1, 4, 2)
    return points[index], index
