"""Positions of a scene's windows and weights of their pixels: geometry only, no files and no networks.

Windows overlap and begin at multiples of the network's stride, so that its coarse maps share one grid whatever the
window size. Within an overlap the weight rises as a raised cosine; a margin at the border, where a window sees little
of its surroundings, has weight 0. Per axis, the weights of all windows at a pixel add up to 1.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hfd_jax.models.base import STRIDE

BLOCK = 512  # edge of the blocks in which maps are stored, pixels; panels end at block boundaries


class Window(NamedTuple):
    """One window of a scene.

    Attributes:
      number: position in the order in which windows are computed.
      panel: index of the panel that the window is computed for.
      row, col: first pixel of the window in the scene.
      row_weights, col_weights: [height], [width] float32; their product is the weight of a pixel.
    """

    number: int
    panel: int
    row: int
    col: int
    row_weights: np.ndarray
    col_weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class Axis:
    """Windows along one axis: where they start, their size, and their weights [windows, size] float32."""

    starts: list[int]
    size: int
    weights: np.ndarray


def place(length: int, window: int, overlap: int) -> Axis:
    """Covers `length` pixels, rounded up to the stride.

    Args:
      length: length of the scene, pixels.
      window: multiple of the stride; a shorter scene gets a single window of its rounded length.
      overlap: overlap of adjacent windows; multiple of the stride, less than `window`. The last window ends with the
        scene and may overlap more.
    """
    end = round_up(length, STRIDE)
    if end <= window:
        return Axis([0], end, np.ones((1, end), np.float32))
    starts = [*range(0, end - window, window - overlap), end - window]
    rise = _rise(window, overlap)
    weights = np.ones((len(starts), window))
    weights[1:] *= rise  # full weight at the scene's border: nothing lies beyond it
    weights[:-1] *= rise[::-1]
    total = np.zeros(end)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + window] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start : start + window]
    return Axis(starts, window, weights.astype(np.float32))


def _rise(window: int, overlap: int) -> np.ndarray:
    """Returns [window]: 0 over a quarter of the overlap, a raised cosine over half of it, then 1."""
    if not overlap:
        return np.ones(window)
    margin = overlap / 4
    way = (np.arange(window) + 0.5 - margin) / (overlap - 2 * margin)
    return np.sin(np.pi / 2 * np.clip(way, 0, 1)) ** 2


class Grid:
    """All windows of a scene in the order in which they are computed: panel by panel, row by row.

    A panel is a run of columns. The sums in memory cover one panel and the height of one window, so they do not grow
    with the scene.

    Args:
      height, width: size of the scene, pixels.
      window, overlap: pixels, multiples of the stride.
      panel: maximum number of columns in a panel; rounded down to whole blocks, at least one.
    """

    def __init__(self, height: int, width: int, window: int, overlap: int, panel: int):
        self.height, self.width = height, width
        self._rows, self._cols = place(height, window, overlap), place(width, window, overlap)
        columns = round_up(-(-width // -(-width // max(panel // BLOCK * BLOCK, BLOCK))), BLOCK)
        self.panels = [(start, min(start + columns, width)) for start in range(0, width, columns)]
        # A window across two panels is computed for both; otherwise its logits would have to be kept for the
        # whole height of the scene.
        self._members = [[j for j in range(len(self._cols.starts)) if self._counts(j, *p)] for p in self.panels]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every window, pixels."""
        return self._rows.size, self._cols.size

    def __len__(self) -> int:
        return len(self._rows.starts) * sum(map(len, self._members))

    def strips(self) -> Iterator[list[Window]]:
        """Yields the windows that lie side by side in a panel, from top to bottom, panel after panel."""
        number = 0
        for panel, members in enumerate(self._members):
            for row, row_weights in zip(self._rows.starts, self._rows.weights, strict=True):
                places = [(self._cols.starts[j], self._cols.weights[j]) for j in members]
                yield [Window(number + k, panel, row, col, row_weights, w) for k, (col, w) in enumerate(places)]
                number += len(members)

    def _counts(self, j: int, start: int, stop: int) -> bool:
        """Whether the windows of column j have any weight in [start, stop)."""
        first = self._cols.starts[j]
        return bool(self._cols.weights[j][max(start - first, 0) : max(stop - first, 0)].any())


def round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
