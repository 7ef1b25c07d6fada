"""Whole-split evaluation: one confusion matrix over all pixels of a split, and pictures of some tiles."""

import contextlib
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from hfd_jax.core.logs import Summaries, columns
from hfd_jax.core.parallel import Jit, Pmap
from hfd_jax.core.workdir import Workdir, read_json, write_json
from hfd_jax.data.catalogue import Dataset
from hfd_jax.data.facts import Facts
from hfd_jax.data.inputs import InputSpec
from hfd_jax.data.pipeline import Reading, Window, evaluation_batches, evaluation_windows
from hfd_jax.evaluation import figures, steps
from hfd_jax.evaluation.metrics import Scores, scores
from hfd_jax.inference.restore import Network, check_fits, load_network
from hfd_jax.models.base import SegmentationNetwork

BUILDINGS = "buildings"  # in evaluation.json, what `buildings.score_workdir` says of a network


class Evaluator:
    """Evaluates networks on one split; compiles once per network shape.

    Args:
      dataset, split: what to evaluate on.
      reading: bands, as the networks take them.
      parallel: devices.
      batch_size: windows per step, all devices together.
      window: edge in pixels; 0 for whole tiles.

    Attributes:
      split, facts: of the data set.
      windows: what is evaluated, in order.
    """

    def __init__(
        self, dataset: Dataset, split: str, reading: Reading, parallel: Jit | Pmap, batch_size: int, window: int = 0
    ):
        self._dataset, self._reading, self._parallel, self._batch_size = dataset, reading, parallel, batch_size
        self.split, self.facts = split, dataset.facts
        self.windows, self._shape = evaluation_windows(dataset, split, window)
        self._compiled: dict[Any, Callable] = {}

    def __call__(self, model: SegmentationNetwork, inputs: InputSpec, sensor: str, variables: Any) -> Scores:
        """Scores of one network; `variables` are replicated."""
        step = self._step(steps.eval_step, model, inputs, sensor)
        classes = self._dataset.facts.class_names
        matrix, ignored = np.zeros((len(classes),) * 2, np.int64), 0
        for batch in self.batches(self.windows):
            counts = jax.device_get(step(variables, self._parallel.shard(batch)))
            matrix += counts["confusion"]
            ignored += int(counts["ignored"])
        # Windows reach beyond the tiles' edge; those pixels are nobody's.
        covered = len(self.windows) * self._shape[0] * self._shape[1]
        outside = covered - sum(
            int(np.prod(self._dataset.shape(self.split, i))) for i in {w.index for w in self.windows}
        )
        return scores(matrix, classes, ignored - outside)

    def class_maps(self, network: Network, of_class: int) -> Iterator[dict[str, np.ndarray]]:
        """What `steps.class_map_step` says of every tile of the split, in order: label, prediction, probability [H, W].

        Tiles larger than the window are put together again.
        """
        step = self._step(steps.class_map_step, network.model, network.inputs, network.sensor, of_class)
        sharded = map(self._parallel.shard, self.batches(self.windows))
        batches = (jax.device_get(step(network.variables, batch)) for batch in sharded)
        parts = ({name: maps[name][k] for name in maps} for maps in batches for k in range(self._batch_size))
        tile: dict[str, np.ndarray] = {}
        for window, part in zip(self.windows, parts, strict=False):  # after the last window comes padding
            height, width = self._dataset.shape(self.split, window.index)
            if window.row == window.col == 0:
                tile = {name: np.zeros((height, width), array.dtype) for name, array in part.items()}
            bottom, right = min(window.row + self._shape[0], height), min(window.col + self._shape[1], width)
            for name, array in part.items():
                tile[name][window.row : bottom, window.col : right] = array[: bottom - window.row, : right - window.col]
            if (bottom, right) == (height, width):
                yield tile

    def predictions(self, networks: Mapping[str, Network], count: int) -> list[dict[str, np.ndarray]]:
        """The first window of `count` tiles spread over the split: the stored arrays and a class map per network."""
        firsts = [window for window in self.windows if window.row == window.col == 0]
        chosen = [firsts[i] for i in np.linspace(0, len(firsts) - 1, min(count, len(firsts))).round().astype(int)]
        predict = {name: (self._predict_step(n), self._parallel.local(n.variables)) for name, n in networks.items()}
        tiles: list[dict[str, np.ndarray]] = []
        for batch in evaluation_batches(self._dataset, chosen, self._shape, self._reading, batch_size=1):
            maps = {name: np.asarray(step(variables, batch)) for name, (step, variables) in predict.items()}
            tiles.append({key: value[0] for key, value in (batch | maps).items()})
        return tiles

    def batches(self, windows: Sequence[Window]) -> Iterable[dict[str, np.ndarray]]:
        """Reads windows in order as `evaluation_batches` does, with progress; this process's part of each batch."""
        process = (jax.process_index(), jax.process_count())
        batches = evaluation_batches(
            self._dataset, windows, self._shape, self._reading, batch_size=self._batch_size, process=process
        )
        total = -(-len(windows) // self._batch_size)
        return tqdm(batches, "evaluating", total, unit="batch", delay=5, leave=False, disable=jax.process_index() > 0)

    def _step(self, builder, *arguments):
        key = (builder, *arguments)
        if key not in self._compiled:
            self._compiled[key] = self._parallel.eval_step(builder(*arguments))
        return self._compiled[key]

    def _predict_step(self, network: Network):
        key = ("predict", network.model, network.inputs, network.sensor)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(steps.predict_step(*key[1:]))
        return self._compiled[key]


def evaluate_workdir(
    workdir: Workdir,
    checkpoints: dict[str, tuple[str, str]],
    evaluator: Evaluator,
    parallel: Jit | Pmap,
    panels: int,
    label: str = "",
    known: Mapping[str, Scores] = types.MappingProxyType({}),
    summaries: str = "",
) -> dict[str, Scores]:
    """Evaluates the networks of a run from their checkpoints; writes evaluation.json and the figures.

    Args:
      workdir: of the run.
      checkpoints: network -> (its checkpoint folder, "latest" or "best").
      evaluator: of the split.
      parallel: devices.
      panels: number of tiles in the picture; 0 for none.
      label: names the results in evaluation.json and in the figures' files; default: the split.
      known: network -> scores that have been computed already.
      summaries: folder of TensorBoard's that gets the figures too.

    Raises:
      CheckpointError: of `load_network`.
      ConfigError: the data set is not what a network was trained to read.

    Returns:
      title -> scores, in the order of `checkpoints`.
    """
    label = label or evaluator.split
    networks = {name: load_network(folder, which, parallel) for name, (folder, which) in checkpoints.items()}
    for network in networks.values():
        check_fits(network.record, evaluator.facts)
    results = {
        name: known.get(name) or evaluator(n.model, n.inputs, n.sensor, n.variables) for name, n in networks.items()
    }
    titles = {name: network.record["title"] for name, network in networks.items()}
    if jax.process_index() == 0:
        _write(workdir, label, networks, results)
        drawn = drawings(evaluator, networks, results, panels)
        for name, figure in drawn.items():
            figures.save(figure, workdir.figure(f"{name}_{label}.png"))
        if summaries:
            last = max(network.record["step"] for network in networks.values())
            with contextlib.closing(Summaries(summaries)) as writer:
                writer.images(last, lambda: {f"{name}_{label}": figures.pixels(drawn[name]) for name in drawn})
    return {titles[name]: row for name, row in results.items()}


def drawings(
    evaluator: Evaluator, networks: Mapping[str, Network], results: Mapping[str, Scores], panels: int
) -> dict[str, Figure]:
    """{"confusion": matrices of the results, "panel": so many tiles with the class map of every network}.

    Args:
      evaluator: of the split.
      networks: by name; the teacher, the only one that sees EO, comes last in the panel.
      results: name -> scores on the split.
      panels: number of tiles; with 0 there is no panel.
    """
    record = next(iter(networks.values())).record
    facts, titles = Facts.from_dict(record["facts"]), {name: n.record["title"] for name, n in networks.items()}
    matrices = {titles[name]: row.matrix for name, row in results.items()}
    drawn = {"confusion": figures.confusion_figure(matrices, facts.class_names)}
    if panels:
        headings = dict(sorted(titles.items(), key=lambda item: item[0] == "teacher"))
        tiles = evaluator.predictions(networks, panels)
        drawn["panel"] = figures.panel_figure(tiles, headings, facts, tuple(record["bands"]["eo"]))
    return drawn


def _write(workdir: Workdir, label: str, networks: dict[str, Network], results: dict[str, Scores]) -> None:
    everything = read_json(workdir.evaluation) if os.path.exists(workdir.evaluation) else {}
    rows = everything.setdefault(label, {})
    for name, network in networks.items():
        row = {"title": network.record["title"], "step": network.record["step"], **results[name].to_dict()}
        before = rows.get(name, {})
        # The score of buildings is of the same network only where nothing else has changed.
        same = {key: value for key, value in before.items() if key != BUILDINGS} == row
        rows[name] = before if same else row
    write_json(workdir.evaluation, everything)


def table(rows: dict[str, Scores]) -> str:
    """A text table: one row per network, IoU per class, then the means."""
    names = next(iter(rows.values())).class_names
    header = ["", *names, "mIoU", "macro F1", "accuracy", "kappa", "ignored px"]
    lines = [header]
    for title, row in rows.items():
        numbers = [*row.iou, row.mean_iou, row.macro_f1, row.accuracy, row.kappa]
        lines.append([title, *("-" if np.isnan(x) else f"{x:.4f}" for x in numbers), str(row.ignored)])
    return columns(lines)
