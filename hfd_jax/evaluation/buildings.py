"""The SpaceNet building score: how many buildings are found as objects, not pixels.

The rule of the SpaceNet building challenges, SpaceNet 6 among them (Shermeyer et al., SpaceNet 6: Multi-Sensor All
Weather Mapping Dataset, CVPR EarthVision 2020), as its published scorer has it (solaris, `eval_iou_spacenet_csv`): in
each image the proposals come in the order of falling confidence. Each looks for the truth that it overlaps most, by
intersection over union, among those not yet matched. Over 0.5 (not at 0.5 itself) the two are a true positive and the
truth is gone; else the proposal is a false positive. Truths left over are false negatives. The counts of all images are
added up before precision, recall and F1 are taken.

Truths and proposals below 80 pixels count neither way: they are dropped before matching, so that a large proposal on
a small truth is a false positive. (The scorer also drops a proposal of exactly its minimum, which would make a perfect
proposal for a truth of that size a miss; here both stay.)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import shapely

from hfd_jax.core.errors import ConfigError, nearest
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.logs import columns
from hfd_jax.core.parallel import Jit, Pmap
from hfd_jax.core.workdir import Workdir, read_json, write_json
from hfd_jax.evaluation.evaluator import BUILDINGS, Evaluator
from hfd_jax.inference.mapping import components
from hfd_jax.inference.restore import check_fits, load_network

USUAL_NAMES = ("building", "buildings")
LEAST_IOU = 0.5  # to be exceeded
LEAST_AREA = 80.0  # pixels


@dataclasses.dataclass(frozen=True)
class BuildingScore:
    """Counts over any number of images; a score whose denominator is zero is NaN."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    def __add__(self, other: "BuildingScore") -> "BuildingScore":
        return BuildingScore(*(a + b for a, b in zip(*map(dataclasses.astuple, (self, other)), strict=True)))

    @property
    def precision(self) -> float:
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        return _share(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a missing score is None."""
        scores = {name: getattr(self, name) for name in ("precision", "recall", "f1")}
        return {name: None if np.isnan(x) else x for name, x in scores.items()} | dataclasses.asdict(self)


def match(
    proposals: Sequence[Any], confidences: Sequence[float], truths: Sequence[Any], least_area: float = LEAST_AREA
) -> BuildingScore:
    """Scores one image.

    Args:
      proposals, truths: valid shapely polygons in pixel coordinates.
      confidences: one per proposal; equal ones keep their order.
      least_area: smaller polygons are dropped, square pixels.
    """
    proposals, truths = np.array(proposals, object), np.array(truths, object)
    large = shapely.area(proposals) >= least_area
    proposals, confidences = proposals[large], np.asarray(confidences, float)[large]
    truths = truths[shapely.area(truths) >= least_area]
    mine, theirs = shapely.STRtree(truths).query(proposals, predicate="intersects")
    shared = shapely.area(shapely.intersection(proposals[mine], truths[theirs]))
    iou = shared / (shapely.area(proposals[mine]) + shapely.area(truths[theirs]) - shared)
    free, hits = np.ones(len(truths), bool), 0
    for proposal in np.argsort(-confidences, kind="stable"):
        candidates = np.flatnonzero((mine == proposal) & free[theirs])
        if len(candidates):
            best = candidates[np.argmax(iou[candidates])]
            if iou[best] > LEAST_IOU:
                free[theirs[best]] = False
                hits += 1
    return BuildingScore(hits, len(proposals) - hits, len(truths) - hits)


def score_tile(reference: np.ndarray, prediction: np.ndarray, probability: np.ndarray, of_class: int) -> BuildingScore:
    """Scores a class map against a label raster: the 4-connected components of both.

    Args:
      reference: [H, W] uint8 label; pixels of IGNORE_LABEL belong to no building, proposed or true.
      prediction: [H, W] uint8 class index.
      probability: [H, W] float32 of the class; its mean over a proposal is its confidence.
      of_class: index of the class.
    """
    labels, count = components.label((prediction == of_class) & (reference != IGNORE_LABEL))
    inside = labels > 0
    owner = labels[inside] - 1
    confidences = np.bincount(owner, probability[inside], count) / np.bincount(owner, minlength=count)
    truths, _ = components.outlines(components.label(reference == of_class)[0])
    return match(components.outlines(labels)[0], confidences, truths)


def building_class(class_names: Sequence[str], wanted: str = "") -> str:
    """`wanted`, or without it the class that is called building(s); ConfigError, naming the classes, where none is."""
    if wanted in class_names:
        return wanted
    usual = [name for name in USUAL_NAMES if name in class_names]
    if usual and not wanted:
        return usual[0]
    what = f"no class {wanted!r}" if wanted else "no class called building"
    raise ConfigError(f"--polygons: the data set has {what}; {nearest(wanted or USUAL_NAMES[0], class_names)}")


def score_workdir(
    workdir: Workdir,
    checkpoints: dict[str, tuple[str, str]],
    evaluator: Evaluator,
    parallel: Jit | Pmap,
    class_name: str,
    label: str = "",
) -> dict[str, BuildingScore]:
    """Scores the networks of a run; adds "buildings" to the rows that `evaluate_workdir` has written.

    The truth is the stored label raster, in which buildings that touch are one: prepared data sets hold no footprints.
    The challenge goes by footprints, so that this figure is not quite its own.

    Args:
      workdir, checkpoints, evaluator, parallel, label: as `evaluate_workdir` had them.
      class_name: which class.

    Raises:
      CheckpointError, ConfigError: as `evaluate_workdir`.

    Returns:
      title -> score, in the order of `checkpoints`.
    """
    of_class = evaluator.facts.class_names.index(class_name)
    scores, titles = {}, {}
    for name, (folder, which) in checkpoints.items():
        network = load_network(folder, which, parallel)
        check_fits(network.record, evaluator.facts)
        maps = evaluator.class_maps(network, of_class)
        tiles = (score_tile(m["label"], m["prediction"], m["probability"], of_class) for m in maps)
        scores[name], titles[name] = sum(tiles, BuildingScore()), network.record["title"]
    if jax.process_index() == 0:
        everything = read_json(workdir.evaluation)
        for name, score in scores.items():
            everything[label or evaluator.split][name][BUILDINGS] = {"class": class_name, **score.to_dict()}
        write_json(workdir.evaluation, everything)
    return {titles[name]: score for name, score in scores.items()}


def table(rows: dict[str, BuildingScore], class_name: str) -> str:
    """A text table: one row per network."""
    lines = [[f"class {class_name}", "precision", "recall", "F1", "true pos.", "false pos.", "false neg."]]
    for title, row in rows.items():
        numbers = ("-" if np.isnan(x) else f"{x:.4f}" for x in (row.precision, row.recall, row.f1))
        lines.append([title, *numbers, *(str(count) for count in dataclasses.astuple(row))])
    return columns(lines)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
