"""Runs a run's networks over a split: confusion matrix per tile, feature similarity, maps of selected tiles."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hfd_jax.core import logs
from hfd_jax.core.errors import DataError, UserError
from hfd_jax.core.parallel import Jit, compiler_options
from hfd_jax.data.catalogue import find_dataset
from hfd_jax.data.facts import Facts
from hfd_jax.data.inputs import InputSpec, network_input
from hfd_jax.data.pipeline import Window
from hfd_jax.evaluation.evaluator import Evaluator
from hfd_jax.evaluation.metrics import confusion_matrix, scores
from hfd_jax.evaluation.speed import inference_speed
from hfd_jax.evaluation.steps import common_label
from hfd_jax.experiments.report.records import NetworkScores, StoredRun
from hfd_jax.experiments.report.similarity import linear_cka, moments
from hfd_jax.inference.restore import Network, check_fits, load_network
from hfd_jax.models.base import TAPS, SegmentationNetwork
from hfd_jax.train import reading
from hfd_jax.train.run import Run
from hfd_jax.train.state import init_fn, initial_key, student_from_teacher

UNTRAINED = "untrained"


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Inference speed of one network, with the input already on the device.

    Attributes:
      network: name of the network.
      megapixels: median speed in megapixels per second.
      batch: shape of the batch, (tiles, height, width).
      dtype, devices: dtype and devices of the computation.
    """

    network: str
    megapixels: float
    batch: tuple[int, int, int]
    dtype: str
    devices: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """Results of one pass over a split.

    Attributes:
      facts: class names, colours and bands of the data set.
      records: network -> its checkpoint's record.
      tiles: positions in the split of the surveyed tiles.
      is_complete: whether `tiles` is the whole split.
      confusion: network -> [tiles, K, K] int64; rows are reference classes.
      similarity: SAR network or UNTRAINED -> {tap: linear CKA with the teacher's feature}; empty without a teacher.
      centred_similarity: as `similarity`, with features centred at each position of the tile (`similarity.linear_cka`).
      positions: tap -> number of positions that the similarity is computed from.
      worst, best: the lowest and highest scoring tiles, as `Evaluator.predictions` returns them, with "position" (in
        `tiles`), "id", "rotated", and "entire": whether one window covers the tile.
      ranked_by: network whose scores rank the tiles.
      throughput: inference speed of `ranked_by`.
    """

    facts: Facts
    records: dict[str, dict[str, Any]]
    tiles: list[int]
    is_complete: bool
    confusion: dict[str, np.ndarray]
    similarity: dict[str, dict[str, float]]
    centred_similarity: dict[str, dict[str, float]]
    positions: dict[str, int]
    worst: list[dict[str, Any]]
    best: list[dict[str, Any]]
    ranked_by: str
    throughput: Throughput

    def tile_scores(self, network: str) -> np.ndarray:
        """Returns the mIoU of each tile over the classes in its label or prediction; NaN without labelled pixels."""
        names = self.facts.class_names
        return np.array([scores(matrix, names).mean_iou for matrix in self.confusion[network]])

    def split_scores(self) -> dict[str, NetworkScores]:
        """Returns network -> scores over the split; empty if only part of the split was surveyed."""
        if not self.is_complete:
            return {}
        return {
            name: NetworkScores(
                self.records[name]["title"], self.records[name]["step"], scores(counts.sum(0), self.facts.class_names)
            )
            for name, counts in self.confusion.items()
        }


def survey_step(model: SegmentationNetwork, inputs: InputSpec, sensor: str):
    """Returns a function (variables, batch, teacher's features or {}) -> (results, features).

    Results: {"confusion": [B, K, K], "prediction": [B, H, W] uint8, "moments": {tap: see `similarity.moments`}}.
    """

    def step(variables, batch, teacher_features):
        batch = network_input(batch, inputs)
        logits, features = model.apply(variables, batch[sensor], train=False)
        prediction = jnp.argmax(logits, -1).astype(jnp.uint8)
        valid = batch["sar_valid"] & batch["eo_valid"]
        # Another architecture may lack one of the teacher's taps or have it at another resolution.
        shared = [
            tap for tap, x in teacher_features.items() if tap in features and features[tap].shape[:3] == x.shape[:3]
        ]
        found = {
            "confusion": jax.vmap(lambda p, t: confusion_matrix(p, t, model.classes))(prediction, common_label(batch)),
            "prediction": prediction,
            "moments": {tap: moments(features[tap], teacher_features[tap], valid) for tap in shared},
        }
        return found, features

    return step


def make_survey(run: StoredRun, data_dir: str | None, count: int, limit: int, parallel: Jit) -> Survey | None:
    """Runs the pass; returns None and adds a remark if the data or all checkpoints are unreadable.

    Args:
      run: the run to survey; remarks, and scores that evaluation.json lacks, are added to it.
      data_dir: root of the prepared data sets; None for config.data.dir.
      count: number of best tiles and of worst tiles to show.
      limit: number of tiles to survey, spread over the split; 0 for all tiles.
      parallel: devices to run on.

    Raises:
      DataError: the data set has no such split.
    """
    survey = None
    try:
        opened = open_run(run, data_dir, parallel)
    except DataError as error:
        run.remarks.append(f"Tiles and feature similarity are missing: the prepared data cannot be opened. {error}")
    else:
        evaluator = opened.evaluator(run.split)
        networks = load_networks(run, opened)
        if networks:
            survey = survey_split(opened, evaluator, networks, count, limit)
        else:
            run.remarks.append("Tiles and feature similarity are missing: no checkpoint can be read.")
    add_missing_scores(run, survey)
    return survey


def add_missing_scores(run: StoredRun, survey: Survey | None) -> None:
    """Adds scores that evaluation.json lacks if the survey covers the whole split, and remarks on missing scores."""
    for name, entry in run.evaluated.items():
        if survey and name in survey.records and survey.records[name]["step"] != entry.step:
            other = survey.records[name]["step"]
            run.remarks.append(f"{entry.title}: scores from step {entry.step}, maps and features from step {other}.")
    missing = [name for name in run.networks() if name not in run.evaluated]
    surveyed = survey.split_scores() if survey else {}
    computed = {name: surveyed[name] for name in missing if name in surveyed}
    if computed:
        names = ", ".join(f"{entry.title} (step {entry.step})" for entry in computed.values())
        run.remarks.append(f"Not in evaluation.json for split {run.split}, computed for this page: {names}.")
    without = [run.title(name) for name in missing if name not in computed]
    if without:
        run.remarks.append(f"No scores on split {run.split}: {', '.join(without)}.")
    run.evaluated.update(computed)


def open_run(run: StoredRun, data_dir: str | None, parallel: Jit) -> Run:
    """Opens the run with its prepared data set; never prepares data."""
    config = run.config
    name = config.data.name
    if name == "scenes":
        name = f"scenes/{reading.scene_source(config.data.scenes).name}"
    dataset = find_dataset(name, data_dir or config.data.dir)
    return Run(config, run.workdir, dataset, parallel, logs.MetricsLog(run.workdir.metrics))


def load_networks(run: StoredRun, opened: Run) -> dict[str, Network]:
    """Loads all networks with a readable checkpoint that fits the data, teacher first; adds remarks on the others."""
    networks = {}
    for name in dict.fromkeys([*(["teacher"] if run.needs_teacher() else []), *run.networks()]):
        folder, which = opened.checkpoint(name)
        if not os.path.isdir(folder):
            if name in run.logged() or (name == "teacher" and run.config.teacher.checkpoint):
                run.remarks.append(f"{run.title(name)}: no checkpoint ({folder}); its maps and features are missing.")
            continue
        try:
            network = load_network(folder, which, opened.parallel)
            check_fits(network.record, opened.dataset.facts)
        except UserError as error:
            run.remarks.append(f"{run.title(name)}: excluded from tiles and similarity. {error}")
        else:
            networks[name] = network
    return networks


def untrained(student: Network, teacher: Network, parallel: Jit) -> Network:
    """Returns the student as initialised, before its first training step."""
    config = student.record["config"]
    bands = len(student.record["bands"][student.sensor])
    init = init_fn(student.model, optax.identity(), bands)
    variables = parallel.init(lambda key: init(key).model_variables, initial_key(config["seed"], student.sensor))
    if config["student"]["init"] == "teacher":
        variables = parallel.replicate(student_from_teacher(variables, teacher.variables, student.model.stems))
    return dataclasses.replace(student, variables=variables)


def survey_split(opened: Run, evaluator: Evaluator, networks: dict[str, Network], count: int, limit: int) -> Survey:
    """Surveys the split with loaded networks and opened data; arguments as in `make_survey`."""
    tiles = evenly_spaced(opened.dataset.size(evaluator.split), limit)
    runner = _Runner(opened.parallel, networks)
    confusion, sums = runner.evaluate(evaluator, [w for w in evaluator.windows if w.index in set(tiles)], tiles)
    names = opened.dataset.facts.class_names
    ranked_by = next((name for name in ("student", *networks) if name in networks and name != "teacher"), "teacher")
    order = ranking(np.array([scores(matrix, names).mean_iou for matrix in confusion[ranked_by]]))
    worst = order[: min(count, max(len(order) // 2, 1))]
    best = order[::-1][: min(count, len(order) - len(worst))]
    pictured = pictures(opened, evaluator, runner, tiles, [*worst, *best])
    batch = next(iter(evaluator.batches(evaluator.windows[:1])))
    return Survey(
        facts=opened.dataset.facts,
        records={name: network.record for name, network in networks.items()},
        tiles=tiles,
        is_complete=len(tiles) == opened.dataset.size(evaluator.split),
        confusion=confusion,
        similarity={name: tap_similarity(taps) for name, taps in sums.items()},
        centred_similarity={name: tap_similarity(taps, each_position=True) for name, taps in sums.items()},
        positions={tap: round(float(part["count"].sum())) for taps in sums.values() for tap, part in taps.items()},
        worst=pictured[: len(worst)],
        best=pictured[len(worst) :],
        ranked_by=ranked_by,
        throughput=measure_throughput(ranked_by, networks[ranked_by], batch, opened.parallel),
    )


def tap_similarity(taps: Mapping[str, Any], each_position: bool = False) -> dict[str, float]:
    """Returns tap -> CKA with the teacher, from {tap: moments}; NaN for a tap without moments."""
    return {tap: linear_cka(taps[tap], each_position) if tap in taps else float("nan") for tap in TAPS}


def pictures(
    opened: Run, evaluator: Evaluator, runner: "_Runner", tiles: list[int], positions: list[int]
) -> list[dict[str, Any]]:
    """Returns the tiles at these positions in `tiles`, with maps and the keys listed in `Survey`."""
    source = opened.dataset.source(evaluator.split)
    pictured = runner.maps(evaluator, [tiles[position] for position in positions])
    for position, tile in zip(positions, pictured, strict=True):
        stored = source[tiles[position]]
        height, width = stored["label"].shape  # the window may extend beyond the tile
        tile |= {key: value[:height, :width] for key, value in tile.items() if np.ndim(value) > 1}
        tile |= {"position": position, "id": stored["id"].decode(), "rotated": bool(stored["rotated"])}
        tile["entire"] = tile["label"].shape == (height, width)
    return pictured


def evenly_spaced(size: int, limit: int) -> list[int]:
    """Returns `limit` positions spread evenly over 0 .. size - 1, or all positions if `limit` is 0."""
    return sorted({int(i) for i in np.linspace(0, size - 1, min(limit or size, size)).round()})


def ranking(tile_scores: np.ndarray) -> list[int]:
    """Sorts positions by ascending score, ties in the split's order; omits tiles without a score."""
    order = np.argsort(tile_scores, kind="stable")
    return [int(position) for position in order if not np.isnan(tile_scores[position])]


class _Runner:
    """Runs all networks on a batch, teacher first, since the others are compared with its features."""

    def __init__(self, parallel: Jit, networks: dict[str, Network]):
        self._parallel, self._compiled = parallel, {}
        self._networks = dict(networks)
        students = [network for network in networks.values() if network.sensor == "sar"]
        if students and "teacher" in networks:
            student = networks.get("student", students[0])
            self._networks[UNTRAINED] = untrained(student, networks["teacher"], parallel)

    def evaluate(self, evaluator: Evaluator, windows: Sequence[Window], tiles: list[int]):
        """Returns (network -> [tiles, K, K] counts, SAR network -> {tap: moments}) over all windows."""
        place = {index: position for position, index in enumerate(tiles)}
        classes = len(evaluator.facts.class_names)
        confusion = {name: np.zeros((len(tiles), classes, classes), np.int64) for name in self._networks}
        sums: dict[str, Any] = {}
        for batch in evaluator.batches(windows):
            real = batch["index"] >= 0  # the others are padding
            positions = [place[int(index)] for index in batch["index"][real]]
            for name, found in self._on(batch).items():
                np.add.at(confusion[name], positions, np.asarray(found["confusion"])[real])
                added = jax.tree.map(lambda x: np.asarray(x, np.float64), found["moments"])
                if added:
                    sums[name] = jax.tree.map(np.add, sums[name], added) if name in sums else added
        confusion.pop(UNTRAINED, None)
        return confusion, sums

    def maps(self, evaluator: Evaluator, tiles: list[int]) -> list[dict[str, np.ndarray]]:
        """Returns the stored arrays and a class map per network for the first window of each tile, in order."""
        firsts = {window.index: window for window in evaluator.windows if window.row == window.col == 0}
        pictured = []
        for batch in evaluator.batches([firsts[index] for index in tiles]):
            maps = {name: np.asarray(found["prediction"]) for name, found in self._on(batch).items()}
            everything = batch | maps
            pictured += [
                {key: value[k] for key, value in everything.items()}
                for k in range(len(batch["index"]))
                if batch["index"][k] >= 0
            ]
        return pictured

    def _on(self, batch: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
        batch = self._parallel.shard(batch)
        found, features = {}, {}
        for name, network in self._networks.items():
            step = self._step(network)
            found[name], seen = step(network.variables, batch, features)
            features = seen if name == "teacher" else features
        return found

    def _step(self, network: Network):
        key = (network.model, network.inputs, network.sensor)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(survey_step(*key), compiler_options=compiler_options())
        return self._compiled[key]


def measure_throughput(name: str, network: Network, batch: Mapping[str, np.ndarray], parallel: Jit) -> Throughput:
    """Measures the network's inference speed on a batch."""
    return Throughput(
        name,
        inference_speed(network, batch, parallel),
        batch["label"].shape,
        jnp.dtype(network.model.dtype).name,
        f"{parallel.mesh.size} x {jax.devices()[0].device_kind}",
    )
