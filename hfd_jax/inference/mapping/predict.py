"""Maps scenes: applies the network to overlapping windows on all local devices, blends them and writes the result."""

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hfd_jax.core.errors import UserError
from hfd_jax.core.parallel import Jit, Pmap
from hfd_jax.data.augment import flip_axes
from hfd_jax.data.facts import DB_RANGE, Facts
from hfd_jax.data.inputs import InputSpec, network_input
from hfd_jax.inference.mapping import placing
from hfd_jax.inference.mapping.checks import check_values
from hfd_jax.inference.mapping.mosaic import Mosaic, Write
from hfd_jax.inference.mapping.reader import Image, Interpretation, Scene, Wanted, check_unit, read_ahead, read_padded
from hfd_jax.inference.mapping.windows import Grid, Window, round_up
from hfd_jax.inference.mapping.writer import NO_DATA, SETTINGS, Target, maps
from hfd_jax.inference.restore import Network, identity
from hfd_jax.models.base import STRIDE, SegmentationNetwork

# Windows of 512 pixels with an overlap of 128 cost as much, but 0.26 % of their pixels get another class than from the
# whole scene at once, because they see less of their surroundings; with these values it is 0.01 %.
WINDOW, OVERLAP, BATCH = 1024, 256, 4
PANEL_BYTES = 2**29  # of the sums and the images of a strip


@dataclasses.dataclass(frozen=True)
class Options:
    """How scenes are predicted.

    Attributes:
      window: edge in pixels, a multiple of the network's stride; 0 for WINDOW, or the training crop if that is larger.
      overlap: of neighbouring windows, pixels, a multiple of the stride.
      batch_size: windows at a time, all local devices together, rounded up to a multiple of their number; at most as
        many as the scene has.
      flips: average the logits over the flips that preserve the look direction.
      rotate: turn every window by 180 degrees before the network and back afterwards.
      described: how the user describes the scenes.
    """

    window: int = 0
    overlap: int = OVERLAP
    batch_size: int = BATCH
    flips: bool = False
    rotate: bool = False
    described: Interpretation = dataclasses.field(default_factory=Interpretation)


class Batch:
    """Windows that are computed together.

    Args:
      sensor: "sar" or "eo".
      windows: [(window, image, valid)].
      size: number of samples; those without a window are filled with invalid pixels.
    """

    def __init__(self, sensor: str, windows: Sequence[tuple[Window, np.ndarray, np.ndarray]], size: int):
        self.windows = [window for window, _, _ in windows]
        self.valid = _stack([valid for _, _, valid in windows], size)
        self.arrays = {
            sensor: _stack([image for _, image, _ in windows], size),
            f"{sensor}_valid": self.valid,
            "rows": _stack([window.row_weights for window in self.windows], size),
            "cols": _stack([window.col_weights for window in self.windows], size),
        }


def _stack(arrays: Sequence[np.ndarray], size: int) -> np.ndarray:
    out = np.zeros((size, *arrays[0].shape), arrays[0].dtype)
    np.stack(arrays, out=out[: len(arrays)])
    return out


def views(look_axis: str, flips: bool, rotate: bool, turned: Sequence[int] = ()) -> list[tuple[int, ...]]:
    """Returns the axes of an [H, W] image to mirror, for every view whose logits are averaged; all mirror `turned`."""
    legal = flip_axes(look_axis) if flips else ()
    kinds = [set(axes) for count in range(len(legal) + 1) for axes in itertools.combinations(legal, count)]
    return [tuple(sorted(axes ^ ({0, 1} if rotate else set()) ^ set(turned))) for axes in kinds]


def window_step(model: SegmentationNetwork, inputs: InputSpec, sensor: str, seen: Sequence[tuple[int, ...]]):
    """Returns (variables, batch) -> [B, classes, H, W] float32: logits averaged over the views, times pixel weights."""

    def step(variables, batch):
        image = network_input(batch, inputs)[sensor]
        mirrored = [jnp.flip(image, [axis + 1 for axis in axes]) for axes in seen]
        # The views of a sample are adjacent, so that they stay on its device.
        stacked = jnp.stack(mirrored, 1).reshape(-1, *image.shape[1:])
        logits, _ = model.apply(variables, stacked, train=False)
        logits = logits.reshape(-1, len(seen), *logits.shape[1:])
        back = [jnp.flip(logits[:, k], [axis + 1 for axis in axes]) for k, axes in enumerate(seen)]
        weights = batch["rows"][:, :, None] * batch["cols"][:, None]
        return jnp.moveaxis(sum(back) / len(seen) * weights[..., None], -1, 1)

    return step


class Predictor:
    """Maps scenes with one network; compiles once per window and batch size.

    Args:
      network: with its variables on the devices of `parallel`.
      parallel: devices of this process.
      options: how scenes are predicted.

    Attributes:
      wanted: the network's input.
      facts: classes and colours of the maps.

    Raises:
      UserError: the options do not fit each other or the network.
    """

    def __init__(self, network: Network, parallel: Jit | Pmap, options: Options):
        window = options.window or max(WINDOW, network.record["config"]["data"]["crop"])
        self._options = dataclasses.replace(options, window=window)
        _check(self._options)
        self._network, self._parallel = network, parallel
        self.wanted = Wanted.of(network)
        check_unit(self.wanted, options.described.sar_unit)
        self.facts = Facts.from_dict(network.record["facts"])
        self._steps: dict[tuple[int, ...], Callable] = {}

    def open(self, path: str) -> Scene:
        """Opens a raster as the network reads it; raises DataError if it does not fit."""
        return Scene(path, self.wanted, self._options.described)

    def settings(self, scene: Scene) -> dict[str, Any]:
        """Everything that determines the maps of a scene, JSON-ready."""
        record, options = self._network.record, self._options
        parameters = json.dumps(identity(self._network), sort_keys=True).encode()
        return {
            "network": record["network"],
            "step": record["step"],
            "parameters": hashlib.blake2b(parameters, digest_size=16).hexdigest(),
            "scene": scene.identity(),
            "bands": scene.bands,
            "unit": scene.unit,
            "nodata": str(scene.nodata),
            **{name: getattr(options, name) for name in ("window", "overlap", "flips", "rotate")},
            **({"turned": list(turned)} if (turned := self._turned(scene)) else {}),
        }

    def _turned(self, image: Image) -> tuple[int, ...]:
        """Axes that are reversed for the network, such as the rows of a south-up scene; see `placing.reversed_axes`."""
        return (
            placing.reversed_axes(image.georeference, self._network.inputs.look_axis)
            if isinstance(image, Scene)
            else ()
        )

    def _step(self, turned: tuple[int, ...]) -> Callable:
        """The compiled `window_step` for images that are turned in this way."""
        if turned not in self._steps:
            network, options = self._network, self._options
            seen = views(network.inputs.look_axis, options.flips, options.rotate, turned)
            function = window_step(network.model, network.inputs, network.sensor, seen)
            self._steps[turned] = self._parallel.map_step(function)
        return self._steps[turned]

    def __call__(self, scene: Scene, target: Target, label: str = "") -> float:
        """Writes the maps of a scene.

        Args:
          scene: to read.
          target: the maps to write.
          label: of the progress bar; there is none without a label.

        Raises:
          DataError: the scene is damaged, or its values do not fit the network's training data.
          WorkdirError: the maps cannot be written.

        Returns:
          The time taken, in seconds.
        """
        begin = time.perf_counter()
        empty = not check_values(scene)
        with maps(target, scene.shape, scene.georeference, self.facts, self._tags(scene)) as files:
            self.predict(scene, files.write, empty, label)
        if empty:
            scene.notes.append(f"it has no valid pixel; its map is {NO_DATA} everywhere")
        return time.perf_counter() - begin

    def predict(self, image: Image, write: Write, empty: bool = False, label: str = "") -> None:
        """Computes the blended logits of an image whose values have been checked.

        Args:
          image: to read.
          write: takes the logits; see `Mosaic`.
          empty: the image has no valid pixel; nothing is computed, and all logits are 0.
          label: of the progress bar; there is none without a label.

        Raises:
          DataError: the image's file is damaged.
        """
        grid = self._grid(image)
        mosaic = Mosaic(grid, len(self.facts.class_names), write)
        with _progress(label, grid) as progress:
            for batch, logits in () if empty else self._logits(image, grid):
                for window, values, valid in zip(batch.windows, logits, batch.valid, strict=False):
                    mosaic.add(window, values, valid)
                # Windows without data are skipped, so progress follows the position, not the number of windows.
                progress.update(progress.total * (batch.windows[-1].number + 1) // len(grid) - progress.n)
            mosaic.close()
            progress.update(progress.total - progress.n)
        if image.strange:
            image.notes.append(f"pixels outside {DB_RANGE[0]:g} to {DB_RANGE[1]:g} dB count as no data")

    def _grid(self, image: Image) -> Grid:
        options = self._options
        column = 4 * options.window * (len(self.facts.class_names) + 3 * len(image.bands))  # bytes, see PANEL_BYTES
        return Grid(*image.shape, options.window, options.overlap, max(PANEL_BYTES // column, 2 * options.window))

    def _tags(self, scene: Scene) -> dict[str, str]:
        settings = self.settings(scene)
        return {
            "TIFFTAG_SOFTWARE": "hfd_jax",
            "NETWORK": self._network.record["title"],
            "STEP": str(settings["step"]),
            "PARAMETERS": settings["parameters"],
            SETTINGS: json.dumps(settings),
        }

    def _logits(self, scene: Image, grid: Grid) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yields batches with their weighted logits; the devices compute the next batch meanwhile."""
        waiting, size = None, round_up(min(self._options.batch_size, len(grid)), self._parallel.local_devices)
        step = self._step(self._turned(scene))
        for batch in read_ahead(batches(scene, grid, size)):
            coming = batch, step(self._network.variables, self._parallel.shard(batch.arrays))
            if waiting:
                yield waiting[0], np.asarray(waiting[1])
            waiting = coming
        if waiting:
            yield waiting[0], np.asarray(waiting[1])


def batches(scene: Image, grid: Grid, size: int) -> Iterator[Batch]:
    """Yields the windows that have valid pixels, in order; reads the scene strip by strip."""
    waiting = []
    for strip in grid.strips():
        (_, _, row, first, *_), (_, _, _, last, *_) = strip[0], strip[-1]
        image, valid = read_padded(scene, row, first, grid.shape[0], last + grid.shape[1] - first)
        for window in strip:
            columns = slice(window.col - first, window.col - first + grid.shape[1])
            if valid[:, columns].any():
                waiting.append((window, image[:, columns], valid[:, columns]))
            if len(waiting) == size:
                yield Batch(scene.wanted.sensor, waiting, size)
                waiting = []
    if waiting:
        yield Batch(scene.wanted.sensor, waiting, size)


def _progress(label: str, grid: Grid) -> tqdm:
    return tqdm(
        total=grid.height * grid.width,
        desc=label,
        unit="pixel",
        unit_scale=True,
        leave=False,
        disable=not label or jax.process_index() > 0,
    )


def _check(options: Options) -> None:
    for name in ("window", "overlap"):
        if getattr(options, name) % STRIDE or getattr(options, name) < 0:
            raise UserError(
                f"--{name}={getattr(options, name)}: expected a multiple of the network's stride {STRIDE}, 0 or more"
            )
    if options.overlap >= options.window:
        raise UserError(f"--overlap={options.overlap}: expected less than the window's edge, {options.window}")
    if options.batch_size < 1:
        raise UserError(f"--batch_size={options.batch_size}: expected 1 or more")
