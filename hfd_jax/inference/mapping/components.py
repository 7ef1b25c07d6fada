"""Connected components of one class and their outlines: masks in, shapely polygons out. No files.

Coordinates count pixels, x to the right and y down: pixel (row, column) is the square from (column, row) to
(column + 1, row + 1). A mask too large for memory is read in horizontal strips; components that cross from one strip
into the next are joined again, so the result does not depend on the height of the strips.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import rasterio.features
import shapely
from rasterio.transform import Affine
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

CONNECTIVITIES = (4, 8)  # pixels that share an edge are one component; with 8, also those that share a corner
NO_CONFIDENCE = 255  # stored value of a pixel without confidence
FULL_CONFIDENCE = 254  # stored value of confidence 1
LARGEST_CHANGE = 0.25  # largest share of a shape's area that simplification may add or remove
MOST_RINGS = 5000  # shapes with more rings are not simplified vertex by vertex


@dataclasses.dataclass(frozen=True)
class Pieces:
    """N components, or the parts of components found in some strips.

    Attributes:
      pixels: [N] int64, number of pixels.
      first: [N] int64, the smallest row * width + column among them.
      confidence: [N] int64, sum of the stored confidences.
      confident: [N] int64, number of pixels with a confidence.
      polygons: [M] shapely polygons, M >= N.
      owner: [M] int64, the piece that each polygon belongs to.
    """

    pixels: np.ndarray
    first: np.ndarray
    confidence: np.ndarray
    confident: np.ndarray
    polygons: np.ndarray
    owner: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def with_more(self, other: "Pieces") -> "Pieces":
        """Returns the pieces of both; those of `other` come last."""
        other = dataclasses.replace(other, owner=other.owner + len(self))
        return Pieces(*(np.concatenate(pair) for pair in zip(_arrays(self), _arrays(other), strict=True)))

    def joined(self, group: np.ndarray, count: int) -> "Pieces":
        """Merges the pieces into `count` new ones; piece i becomes part of piece `group[i]`."""
        first = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(first, group, self.first)
        # Sums in float64 are exact below 2^53, which no raster reaches.
        sums = (np.bincount(group, x, count).astype(np.int64) for x in (self.pixels, self.confidence, self.confident))
        pixels, confidence, confident = sums
        return Pieces(pixels, first, confidence, confident, self.polygons, group[self.owner])

    def select(self, wanted: np.ndarray) -> "Pieces":
        """Returns the pieces for which `wanted` [N] is True, in the same order."""
        kept = wanted[self.owner]
        number = np.cumsum(wanted) - 1
        numbers = (x[wanted] for x in (self.pixels, self.first, self.confidence, self.confident))
        return Pieces(*numbers, self.polygons[kept], number[self.owner[kept]])


def label(mask: np.ndarray, connectivity: int = 4) -> tuple[np.ndarray, int]:
    """Returns ([H, W] int32, 0 outside of `mask` and 1 to `count` in its components; count)."""
    return ndimage.label(mask, ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1))


def outlines(labels: np.ndarray, top: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Traces the components along the edges of their pixels.

    Args:
      labels: [H, W] int32, as returned by `label`.
      top: row of the mask at which `labels` starts.

    Returns:
      (polygons [M], the component 0 .. count - 1 of each [M] int64, ascending). A 4-connected component is one valid
      polygon; an 8-connected one has a polygon for each of its 4-connected parts.
    """
    # With connectivity 8, GDAL would return rings that touch themselves, which are not valid.
    found = rasterio.features.shapes(labels, labels > 0, connectivity=4, transform=Affine.translation(0, top))
    polygons, owner = [], []
    for geometry, value in found:
        shell, *holes = geometry["coordinates"]
        polygons.append(shapely.Polygon(shell, holes))
        owner.append(int(value) - 1)
    order = np.argsort(np.array(owner, np.int64), kind="stable")
    return np.array(polygons, object)[order], np.array(owner, np.int64)[order]


def trace(strips: Iterable[tuple[np.ndarray, np.ndarray | None]], connectivity: int = 4) -> Iterator[Pieces]:
    """Finds the components of a mask that is read in strips from top to bottom.

    Args:
      strips: (mask [h, W] bool, confidence [h, W] uint8 or None).
      connectivity: 4 or 8.

    Yields:
      After each strip, the components that end above the next one. The others stay in memory.
    """
    waiting, above, top = _no_pieces(), None, 0
    for mask, confidence in strips:
        labels, count = label(mask, connectivity)
        pieces = waiting.with_more(_measure(labels, count, confidence, top))
        first_line, last_line = (np.where(line > 0, line - 1 + len(waiting), -1) for line in (labels[0], labels[-1]))
        if above is not None:
            count, group = _groups(len(pieces), _touching(above, first_line, connectivity))
            pieces = pieces.joined(group, count)
            last_line = np.append(group, -1)[last_line]  # -1, no piece, stays -1
        goes_on = np.zeros(len(pieces), bool)
        goes_on[last_line[last_line >= 0]] = True
        yield pieces.select(~goes_on)
        waiting = pieces.select(goes_on)
        above = np.append(np.cumsum(goes_on) - 1, -1)[last_line]
        top += len(mask)
    yield waiting


def shapes_of(pieces: Pieces) -> np.ndarray:
    """Returns [N] valid Polygons or MultiPolygons, one per component, normalised and without redundant vertices."""
    if not len(pieces):
        return pieces.polygons
    ends = np.cumsum(np.bincount(pieces.owner, minlength=len(pieces)))
    polygons = np.split(pieces.polygons[np.argsort(pieces.owner, kind="stable")], ends[:-1])
    shapes = np.array([parts[0] if len(parts) == 1 else shapely.union_all(parts) for parts in polygons], object)
    shapes = shapely.normalize(shapes)
    joined = np.array([len(parts) > 1 for parts in polygons], bool)  # strips leave vertices within straight edges
    if joined.any():
        shapes[joined] = shapely.normalize(_only_corners(shapes[joined]))
    return shapes


def simplified(shapes: np.ndarray, tolerance: float) -> np.ndarray:
    """Simplifies the staircase outlines of `shapes_of`; shapes stay valid and keep all parts and holes.

    Vertices closer than `tolerance` to the new outline are left out, as far as topology allows. Features about a pixel
    wide would turn into triangles: a shape whose area would change by more than LARGEST_CHANGE is simplified with half
    or a quarter of the tolerance, or left as it is. The run time grows with the square of the number of holes, so a
    shape with more than MOST_RINGS rings has its corners cut by half a pixel instead. This turns stairs into diagonals
    and always gives a valid shape.
    """
    result, area = shapes.copy(), shapely.area(shapes)
    parts, owner = shapely.get_parts(shapes, return_index=True)
    many = np.bincount(owner, shapely.get_num_interior_rings(parts) + 1, len(shapes)) > MOST_RINGS
    todo = np.flatnonzero(~many)
    if many.any():
        result[many] = _cut_corners(shapes[many])
    for share in (1.0, 0.5, 0.25):
        coarse = shapely.simplify(shapes[todo], share * tolerance)
        good = np.abs(shapely.area(coarse) - area[todo]) <= LARGEST_CHANGE * area[todo]
        result[todo[good]] = coarse[good]
        todo = todo[~good]
    return result


def _only_corners(shapes: np.ndarray) -> np.ndarray:
    """Removes vertices within straight edges; rings must start at a corner, which `normalize` guarantees."""
    kind, xy, (rings, *others) = shapely.to_ragged_array(shapes)
    before, after = np.diff(xy, axis=0, prepend=xy[:1]), np.diff(xy, axis=0, append=xy[-1:])
    corner = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    corner[rings[:-1]] = corner[rings[1:] - 1] = True
    return shapely.from_ragged_array(kind, xy[corner], (np.append(0, np.cumsum(corner))[rings], *others))


def _cut_corners(shapes: np.ndarray) -> np.ndarray:
    """Joins the points half a pixel before and after every corner."""
    kind, xy, (rings, *others) = shapely.to_ragged_array(shapes)
    edge = np.diff(xy, axis=0, append=xy[-1:])
    length = np.abs(edge).max(1, keepdims=True)
    half = edge / np.maximum(length, 1) / 2
    points = np.stack([xy + half, xy + edge - half], 1)
    kept = np.concatenate([length > 0, length > 1], 1)  # the middle of an edge of one pixel is one point
    first, last = rings[:-1], rings[1:] - 1  # the last vertex of a ring closes it: no edge begins there
    points[last, 0], kept[last] = points[first, 0], (True, False)
    rings = np.append(0, np.cumsum(kept.sum(1)))[rings]
    return _only_corners(shapely.normalize(shapely.from_ragged_array(kind, points[kept], (rings, *others))))


def _arrays(pieces: Pieces) -> list[np.ndarray]:
    return [getattr(pieces, field.name) for field in dataclasses.fields(pieces)]


def _no_pieces() -> Pieces:
    none = np.zeros(0, np.int64)
    return Pieces(none, none, none, none, np.zeros(0, object), none)


def _measure(labels: np.ndarray, count: int, confidence: np.ndarray | None, top: int) -> Pieces:
    flat = labels.ravel()
    places = np.flatnonzero(flat)
    owner = flat[places] - 1
    first = np.zeros(count, np.int64)
    first[owner[::-1]] = places[::-1] + top * labels.shape[1]  # for equal indices, the last assignment wins
    pixels = np.bincount(owner, minlength=count)
    sums, confident = np.zeros((2, count), np.int64)
    if confidence is not None:
        values = confidence.ravel()[places]
        known = values != NO_CONFIDENCE
        sums = np.bincount(owner[known], values[known], count).astype(np.int64)
        confident = np.bincount(owner[known], minlength=count)
    return Pieces(pixels, first, sums, confident, *outlines(labels, top))


def _touching(above: np.ndarray, below: np.ndarray, connectivity: int) -> np.ndarray:
    """Returns [P, 2], pairs of pieces that touch across two adjacent rows [W] of piece numbers (-1: no piece)."""
    pairs, width = [], len(above)
    for shift in (-1, 0, 1) if connectivity == 8 else (0,):
        one, other = above[max(0, -shift) : width - max(0, shift)], below[max(0, shift) : width - max(0, -shift)]
        both = (one >= 0) & (other >= 0)
        pairs.append(np.stack([one[both], other[both]], 1))
    return np.unique(np.concatenate(pairs), axis=0)


def _groups(count: int, pairs: np.ndarray) -> tuple[int, np.ndarray]:
    """Returns (number of groups, [count] group of each piece); the pieces of a pair share a group."""
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    number, group = connected_components(links, directed=False)
    return number, group
