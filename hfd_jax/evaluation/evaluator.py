"""Evaluation of a whole split: one confusion matrix over all its pixels, and figures of some tiles."""

import contextlib
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from hfd_jax.core.logs import Summaries
from hfd_jax.core.parallel import Jit, Pmap, prefetch
from hfd_jax.core.workdir import Workdir, read_json, write_json
from hfd_jax.data.catalogue import Dataset
from hfd_jax.data.facts import Facts
from hfd_jax.data.inputs import InputSpec
from hfd_jax.data.pipeline import Reading, Window, evaluation_batches, evaluation_windows
from hfd_jax.evaluation import figures, steps
from hfd_jax.evaluation.metrics import Scores, scores
from hfd_jax.inference.restore import Network, check_fits, load_network
from hfd_jax.models.base import SegmentationNetwork

BUILDINGS = "buildings"  # key in evaluation.json of the building score, which `buildings.score_workdir` adds


class Evaluator:
    """Evaluates networks on one split; compiles once per network shape.

    Args:
      dataset, split: data to evaluate on.
      reading: bands that the networks read.
      parallel: devices.
      batch_size: windows per step, over all devices.
      window: window edge in pixels; 0 for whole tiles.

    Attributes:
      split: name of the split.
      facts: facts of the data set.
      windows: evaluated windows, in order.
    """

    def __init__(
        self, dataset: Dataset, split: str, reading: Reading, parallel: Jit | Pmap, batch_size: int, window: int = 0
    ):
        self._dataset, self._reading, self._parallel, self._batch_size = dataset, reading, parallel, batch_size
        self.split, self.facts = split, dataset.facts
        self.windows, self._shape = evaluation_windows(dataset, split, window)
        self._compiled: dict[Any, Callable] = {}

    def __call__(self, model: SegmentationNetwork, inputs: InputSpec, sensor: str, variables: Any) -> Scores:
        """Scores one network; `variables` are replicated over the devices."""
        step = self._step(steps.eval_step, model, inputs, sensor)
        classes = self._dataset.facts.class_names
        matrix, ignored = np.zeros((len(classes),) * 2, np.int64), 0
        # The host reads on while the device counts. The counts of a batch are int32; over a split they could overflow.
        for counts in prefetch(self.batches(self.windows), lambda batch: step(variables, self._parallel.shard(batch))):
            matrix += np.asarray(counts["confusion"])
            ignored += int(counts["ignored"])
        # Windows extend beyond the edge of a tile; those padding pixels are not counted.
        covered = len(self.windows) * self._shape[0] * self._shape[1]
        outside = covered - sum(
            int(np.prod(self._dataset.shape(self.split, i))) for i in {w.index for w in self.windows}
        )
        return scores(matrix, classes, ignored - outside)

    def class_maps(self, network: Network, of_class: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields the maps of `steps.class_map_step` for every tile of the split, in order.

        Each tile has "label", "prediction" and "probability" [H, W]; windows are assembled into whole tiles.
        """
        step = self._step(steps.class_map_step, network.model, network.inputs, network.sensor, of_class)
        sharded = map(self._parallel.shard, self.batches(self.windows))
        batches = (jax.device_get(step(network.variables, batch)) for batch in sharded)
        parts = ({name: maps[name][k] for name in maps} for maps in batches for k in range(self._batch_size))
        tile: dict[str, np.ndarray] = {}
        for window, part in zip(self.windows, parts, strict=False):  # the last batch is padded
            height, width = self._dataset.shape(self.split, window.index)
            if window.row == window.col == 0:
                tile = {name: np.zeros((height, width), array.dtype) for name, array in part.items()}
            bottom, right = min(window.row + self._shape[0], height), min(window.col + self._shape[1], width)
            for name, array in part.items():
                tile[name][window.row : bottom, window.col : right] = array[: bottom - window.row, : right - window.col]
            if (bottom, right) == (height, width):
                yield tile

    def predictions(self, networks: Mapping[str, Network], count: int) -> list[dict[str, np.ndarray]]:
        """Returns stored arrays and class maps for the first window of `count` tiles spread over the split."""
        firsts = [window for window in self.windows if window.row == window.col == 0]
        chosen = [firsts[i] for i in np.linspace(0, len(firsts) - 1, min(count, len(firsts))).round().astype(int)]
        predict = {name: (self._predict_step(n), self._parallel.local(n.variables)) for name, n in networks.items()}
        tiles: list[dict[str, np.ndarray]] = []
        for batch in evaluation_batches(self._dataset, chosen, self._shape, self._reading, batch_size=1):
            maps = {name: np.asarray(step(variables, batch)) for name, (step, variables) in predict.items()}
            tiles.append({key: value[0] for key, value in (batch | maps).items()})
        return tiles

    def batches(self, windows: Sequence[Window]) -> Iterable[dict[str, np.ndarray]]:
        """Reads this process's share of each batch of windows, in order, and shows progress."""
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
) -> tuple[dict[str, Scores], list[str]]:
    """Evaluates the networks of a run from their checkpoints; writes evaluation.json and the figures.

    Args:
      workdir: workdir of the run.
      checkpoints: network -> (its checkpoint folder, "latest" or "best").
      evaluator: evaluator of the split.
      parallel: devices.
      panels: number of tiles in the panel figure; 0 writes no panel.
      label: key in evaluation.json and suffix of the figures' file names; default: the split.
      known: network -> scores that have been computed already.
      summaries: TensorBoard folder that receives the figures as well; "" for none.

    Returns:
      (title -> scores, in the order of `checkpoints`; paths of the files written, relative to the workdir, which are
      none on any process but the first).

    Raises:
      CheckpointError: a checkpoint cannot be loaded.
      ConfigError: the data set does not match the data that a network was trained on.
    """
    label = label or evaluator.split
    networks = {name: load_network(folder, which, parallel) for name, (folder, which) in checkpoints.items()}
    for network in networks.values():
        check_fits(network.record, evaluator.facts)
    results = {
        name: known.get(name) or evaluator(n.model, n.inputs, n.sensor, n.variables) for name, n in networks.items()
    }
    titles = {name: network.record["title"] for name, network in networks.items()}
    written: list[str] = []
    if jax.process_index() == 0:
        _write(workdir, label, networks, results)
        drawn = drawings(evaluator, networks, results, panels)
        paths = {name: workdir.figure(f"{name}_{label}.png") for name in drawn}
        for name, figure in drawn.items():
            figures.save(figure, paths[name])
        written = [os.path.relpath(path, workdir.root) for path in (workdir.evaluation, *paths.values())]
        if summaries:
            last = max(network.record["step"] for network in networks.values())
            with contextlib.closing(Summaries(summaries)) as writer:
                writer.images(last, lambda: {f"{name}_{label}": figures.pixels(drawn[name]) for name in drawn})
    return {titles[name]: row for name, row in results.items()}, written


def drawings(
    evaluator: Evaluator, networks: Mapping[str, Network], results: Mapping[str, Scores], panels: int
) -> dict[str, Figure]:
    """Draws {"confusion": the confusion matrices, "panel": some tiles with every network's class map}.

    Args:
      evaluator: evaluator of the split.
      networks: name -> network; the teacher, the only network that reads EO, comes last in the panel.
      results: name -> scores on the split.
      panels: number of tiles; 0 draws no panel.
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
        # Keep the building score only if the row is unchanged: otherwise it belongs to another network.
        same = {key: value for key, value in before.items() if key != BUILDINGS} == row
        rows[name] = before if same else row
    write_json(workdir.evaluation, everything)


def table(rows: dict[str, Scores]) -> str:
    """A text table: one row per network; IoU per class, then the scores over all classes."""
    scalars = {"mIoU": "mean_iou", "macro F1": "macro_f1", "accuracy": "accuracy", "kappa": "kappa"}
    cells = [[*row.iou, *(getattr(row, field) for field in scalars.values()), row.ignored] for row in rows.values()]
    names = [*next(iter(rows.values())).class_names, *scalars, "ignored px"]
    # Separate formatters per dtype: scores are floats, the count of ignored pixels is an integer.
    return pd.DataFrame(cells, list(rows), names).to_string(float_format="{:.4f}".format, na_rep="-")
