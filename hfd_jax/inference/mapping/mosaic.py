"""Blends windows: sums their weighted logits and writes finished rows."""

from collections.abc import Callable

import numpy as np

from hfd_jax.inference.mapping.windows import Grid, Window, round_up
from hfd_jax.models.base import STRIDE

Write = Callable[[int, int, np.ndarray, np.ndarray], None]


class Mosaic:
    """Blends the windows of a grid in order and writes every pixel of the scene once.

    Args:
      grid: the scene's windows.
      classes: number of classes.
      write: called with (row, column, logits [classes, H, W] float32, valid [H, W] bool) for runs of finished rows; row
        and H are multiples of the stride, except at the scene's lower edge. The arrays are reused after the call.
    """

    def __init__(self, grid: Grid, classes: int, write: Write):
        self._grid, self._write = grid, write
        width = max(stop - start for start, stop in grid.panels)
        self._logits = np.zeros((classes, grid.shape[0], width), np.float32)
        self._valid = np.zeros((grid.shape[0], width), bool)
        self._panel, self._top = 0, 0

    def add(self, window: Window, logits: np.ndarray, valid: np.ndarray) -> None:
        """Adds a window; windows without any valid pixel may be left out.

        Args:
          window: later in the grid's order than all windows added before.
          logits: [classes, height, width] float32, multiplied by the window's weights.
          valid: [height, width] bool.
        """
        while self._panel < window.panel:
            self._finish_panel()
        self._move(window.row)
        start, stop = self._grid.panels[self._panel]
        first, last = max(window.col, start), min(window.col + logits.shape[2], stop)
        here, there = slice(first - start, last - start), slice(first - window.col, last - window.col)
        self._logits[:, :, here] += logits[:, :, there]
        self._valid[:, here] |= valid[:, there]

    def close(self) -> None:
        """Writes the remaining rows."""
        while self._panel < len(self._grid.panels):
            self._finish_panel()

    def _finish_panel(self) -> None:
        self._move(round_up(self._grid.height, STRIDE))
        self._panel, self._top = self._panel + 1, 0

    def _move(self, row: int) -> None:
        """Writes the rows above `row`, and moves the buffer down to it."""
        while self._top < row:
            count = min(row - self._top, len(self._valid))
            self._emit(min(count, self._grid.height - self._top))
            for plane in (*self._logits, self._valid):
                plane[:-count] = plane[count:]
                plane[-count:] = 0
            self._top += count

    def _emit(self, rows: int) -> None:
        start, stop = self._grid.panels[self._panel]
        columns = slice(0, stop - start)
        if rows > 0:
            self._write(self._top, start, self._logits[:, :rows, columns], self._valid[:rows, columns])
