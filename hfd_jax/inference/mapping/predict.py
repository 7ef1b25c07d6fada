"""From scenes to maps: windows through the network on all local devices, blended, written as they are finished."""

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hfd_jax.core.errors import UserError
from hfd_jax.core.parallel import Jit, Pmap
from hfd_jax.data.augment import legal_flips
from hfd_jax.data.facts import DB_RANGE, Facts
from hfd_jax.data.inputs import InputSpec, network_input
from hfd_jax.inference.mapping.checks import check_values
from hfd_jax.inference.mapping.mosaic import Mosaic
from hfd_jax.inference.mapping.reader import Interpretation, Scene, Wanted, check_unit, read_ahead
from hfd_jax.inference.mapping.windows import Grid, Window, round_up
from hfd_jax.inference.mapping.writer import NO_DATA, SETTINGS, Target, maps
from hfd_jax.inference.restore import Network, identity
from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.hfdnet import STRIDE

# Windows of 512 pixels that overlap by 128 cost as much, but what a window knows of its surroundings then ends so near
# that 0.26 % of the pixels get another class than from the whole scene at once; with these it is 0.01 %.
WINDOW, OVERLAP, BATCH = 1024, 256, 4
PANEL_BYTES = 2**29  # of the sums and the images of a strip


@dataclasses.dataclass(frozen=True)
class Options:
    """How scenes are predicted.

    Attributes:
      window: edge in pixels, a multiple of the network's stride; 0: WINDOW, or the training crop where that is larger.
      overlap: of neighbouring windows, pixels, a multiple of the stride.
      batch_size: windows at a time, all local devices together, rounded up to a multiple of their number; no more than
        a scene has.
      flips: averages the logits over the flips that the look direction allows.
      rotate: turns every window by 180 degrees before the network and back afterwards.
      said: about the scenes.
    """

    window: int = 0
    overlap: int = OVERLAP
    batch_size: int = BATCH
    flips: bool = False
    rotate: bool = False
    said: Interpretation = dataclasses.field(default_factory=Interpretation)


class Batch:
    """Windows that are computed together.

    Args:
      sensor: whose images they hold.
      windows: [(window, image, valid)].
      size: samples; what is missing is filled up with invalid pixels.
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


def views(look_axis: str, flips: bool, rotate: bool) -> list[tuple[int, ...]]:
    """Axes of an [H, W] image that are mirrored, for every view whose logits are averaged."""
    legal = legal_flips(look_axis) if flips else ()
    kinds = [set(axes) for count in range(len(legal) + 1) for axes in itertools.combinations(legal, count)]
    return [tuple(sorted(axes ^ ({0, 1} if rotate else set()))) for axes in kinds]


def window_step(model: SegmentationNetwork, inputs: InputSpec, sensor: str, seen: Sequence[tuple[int, ...]]):
    """Returns (variables, batch) -> [B, classes, H, W] float32: mean logits of all views, times the pixels' weights."""

    def step(variables, batch):
        image = network_input(batch, inputs)[sensor]
        mirrored = [jnp.flip(image, [axis + 1 for axis in axes]) for axes in seen]
        # Views of a sample side by side: they stay on its device.
        stacked = jnp.stack(mirrored, 1).reshape(-1, *image.shape[1:])
        logits, _ = model.apply(variables, stacked, train=False)
        logits = logits.reshape(-1, len(seen), *logits.shape[1:])
        back = [jnp.flip(logits[:, k], [axis + 1 for axis in axes]) for k, axes in enumerate(seen)]
        weights = batch["rows"][:, :, None] * batch["cols"][:, None]
        return jnp.moveaxis(sum(back) / len(seen) * weights[..., None], -1, 1)

    return step


class Predictor:
    """Makes maps of scenes with one network; compiles once per size of window and batch.

    Args:
      network: whose variables lie on the devices of `parallel`.
      parallel: devices of this process.
      options: how.

    Raises:
      UserError: options that do not fit each other or the network.
    """

    def __init__(self, network: Network, parallel: Jit | Pmap, options: Options):
        window = options.window or max(WINDOW, network.record["config"]["data"]["crop"])
        self._options = dataclasses.replace(options, window=window)
        _check(self._options)
        self._network, self._parallel = network, parallel
        self._wanted = Wanted.of(network)
        check_unit(self._wanted, options.said.sar_unit)
        self._facts = Facts.from_dict(network.record["facts"])
        seen = views(network.inputs.look_axis, options.flips, options.rotate)
        self._step = parallel.map_step(window_step(network.model, network.inputs, network.sensor, seen))

    def open(self, path: str) -> Scene:
        """The scene as the network reads it; DataError where it does not fit."""
        return Scene(path, self._wanted, self._options.said)

    def settings(self, scene: Scene) -> dict[str, Any]:
        """All that decides what the maps of a scene say, JSON-ready."""
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
        }

    def __call__(self, scene: Scene, target: Target, label: str = "") -> float:
        """Writes the maps of a scene.

        Args:
          scene: to read.
          target: which maps, and where.
          label: of the progress that is shown.

        Raises:
          DataError: the scene is damaged, or its values are not what the network was trained on.
          WorkdirError: the maps cannot be written.

        Returns:
          Seconds that it took.
        """
        begin = time.perf_counter()
        grid, empty = self._grid(scene), not check_values(scene)
        if empty:
            scene.notes.append(f"it has no valid pixel, and its map {NO_DATA} everywhere")
        with maps(target, scene.shape, scene.georeference, self._facts, self._tags(scene)) as files:
            mosaic = Mosaic(grid, len(self._facts.class_names), files.write)
            with _progress(label, grid) as progress:
                for batch, logits in () if empty else self._logits(scene, grid):
                    for window, values, valid in zip(batch.windows, logits, batch.valid, strict=False):
                        mosaic.add(window, values, valid)
                    # Windows without data are passed over, so it is the place that tells how much is done.
                    progress.update(progress.total * (batch.windows[-1].number + 1) // len(grid) - progress.n)
                mosaic.close()
                progress.update(progress.total - progress.n)
        if scene.strange:
            scene.notes.append(f"pixels outside {DB_RANGE[0]:g} to {DB_RANGE[1]:g} dB count as no data")
        return time.perf_counter() - begin

    def _grid(self, scene: Scene) -> Grid:
        options = self._options
        column = 4 * options.window * (len(self._facts.class_names) + 3 * len(scene.bands))  # bytes, see PANEL_BYTES
        return Grid(*scene.shape, options.window, options.overlap, max(PANEL_BYTES // column, 2 * options.window))

    def _tags(self, scene: Scene) -> dict[str, str]:
        settings = self.settings(scene)
        return {
            "TIFFTAG_SOFTWARE": "hfd_jax",
            "NETWORK": self._network.record["title"],
            "STEP": str(settings["step"]),
            "PARAMETERS": settings["parameters"],
            SETTINGS: json.dumps(settings),
        }

    def _logits(self, scene: Scene, grid: Grid) -> Iterator[tuple[Batch, np.ndarray]]:
        """Batches with their weighted logits; while one is waited for, the next one is on the devices."""
        waiting, size = None, round_up(min(self._options.batch_size, len(grid)), self._parallel.local_devices)
        for batch in read_ahead(batches(scene, grid, size)):
            coming = batch, self._step(self._network.variables, self._parallel.shard(batch.arrays))
            if waiting:
                yield waiting[0], np.asarray(waiting[1])
            waiting = coming
        if waiting:
            yield waiting[0], np.asarray(waiting[1])


def batches(scene: Scene, grid: Grid, size: int) -> Iterator[Batch]:
    """The windows of a scene in which something is valid, in order; read strip by strip, however the file is stored."""
    waiting = []
    for strip in grid.strips():
        (_, _, row, first, *_), (_, _, _, last, *_) = strip[0], strip[-1]
        image, valid = scene.read(row, first, grid.shape[0], last + grid.shape[1] - first)
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
        disable=jax.process_index() > 0,
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
