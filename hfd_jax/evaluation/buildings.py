"""The SpaceNet building score: precision, recall and F1 of buildings as objects rather than pixels.

The score follows the SpaceNet building challenges, including SpaceNet 6 (Shermeyer et al., SpaceNet 6: Multi-Sensor All
Weather Mapping Dataset, CVPR EarthVision 2020), and their published scorer (solaris, `eval_iou_spacenet_csv`). In each
image, proposals are matched in order of decreasing confidence. Each proposal is compared with the unmatched truth that
it overlaps most, by intersection over union. If the IoU exceeds 0.5 (0.5 itself is not enough), the pair is a true
positive and the truth is matched; otherwise the proposal is a false positive. Unmatched truths are false negatives.
Precision, recall and F1 are computed from the counts summed over all images.

Truths and proposals smaller than 80 pixels are dropped before matching, so that a large proposal on a small truth is a
false positive. (The published scorer also drops a proposal of exactly the minimum area, which would turn a perfect
proposal for a truth of that area into a miss; here both are kept.)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
import shapely

from hfd_jax.core.errors import ConfigError, nearest
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.parallel import Jit, Pmap
from hfd_jax.core.workdir import Workdir, read_json, write_json
from hfd_jax.evaluation.evaluator import BUILDINGS, Evaluator
from hfd_jax.inference.mapping import components
from hfd_jax.inference.restore import check_fits, load_network

USUAL_NAMES = ("building", "buildings")
LEAST_IOU = 0.5  # exclusive
LEAST_AREA = 80.0  # pixels


@dataclasses.dataclass(frozen=True)
class BuildingScore:
    """Counts over any number of images; scores with a zero denominator are NaN."""

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
      confidences: one per proposal; ties keep their order.
      least_area: minimum area in square pixels; smaller polygons are dropped.
    """
    proposals, truths = np.array(proposals, object), np.array(truths, object)
    large = shapely.area(proposals) >= least_area
    proposals, confidences = proposals[large], np.asarray(confidences, float)[large]
    truths = truths[shapely.area(truths) >= least_area]
    # Overlapping pairs: pair k is proposal of_proposal[k] and truth of_truth[k].
    of_proposal, of_truth = shapely.STRtree(truths).query(proposals, predicate="intersects")
    shared = shapely.area(shapely.intersection(proposals[of_proposal], truths[of_truth]))
    iou = shared / (shapely.area(proposals[of_proposal]) + shapely.area(truths[of_truth]) - shared)
    free, hits = np.ones(len(truths), bool), 0
    for proposal in np.argsort(-confidences, kind="stable"):
        candidates = np.flatnonzero((of_proposal == proposal) & free[of_truth])
        if len(candidates):
            best = candidates[np.argmax(iou[candidates])]
            if iou[best] > LEAST_IOU:
                free[of_truth[best]] = False
                hits += 1
    return BuildingScore(hits, len(proposals) - hits, len(truths) - hits)


def score_tile(reference: np.ndarray, prediction: np.ndarray, probability: np.ndarray, of_class: int) -> BuildingScore:
    """Scores the 4-connected components of a class map against those of a label raster.

    Args:
      reference: [H, W] uint8 label; pixels with IGNORE_LABEL belong to no proposal and no truth.
      prediction: [H, W] uint8 class index.
      probability: [H, W] float32 probability of the class; its mean over a proposal is the confidence.
      of_class: index of the class.
    """
    labels, count = components.label((prediction == of_class) & (reference != IGNORE_LABEL))
    inside = labels > 0
    owner = labels[inside] - 1
    confidences = np.bincount(owner, probability[inside], count) / np.bincount(owner, minlength=count)
    truths, _ = components.outlines(components.label(reference == of_class)[0])
    return match(components.outlines(labels)[0], confidences, truths)


def building_class(class_names: Sequence[str], wanted: str = "") -> str:
    """Returns `wanted`, or by default the class named building(s).

    Raises:
      ConfigError: the data set has no such class.
    """
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
    """Scores the networks of a run; adds "buildings" to the rows that `evaluate_workdir` wrote.

    The truth comes from the stored label raster because prepared data sets contain no footprints. The raster merges
    buildings that touch, so the score is not directly comparable with the challenge's, which uses footprints.

    Args:
      workdir, checkpoints, evaluator, parallel, label: the arguments of the preceding `evaluate_workdir`.
      class_name: name of the building class.

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
    cells = [[row.precision, row.recall, row.f1, *dataclasses.astuple(row)] for row in rows.values()]
    names = pd.Index(["precision", "recall", "F1", "true pos.", "false pos.", "false neg."], name=f"class {class_name}")
    return pd.DataFrame(cells, list(rows), names).to_string(float_format="{:.4f}".format, na_rep="-")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
