"""Statistics of a sweep: results per row and seed, means with intervals, paired differences and their tests."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.errors import CheckpointError
from hfd_jax.core.logs import read_log
from hfd_jax.core.workdir import Workdir, read_json
from hfd_jax.experiments.runner import is_finished
from hfd_jax.experiments.sweep import Job, Sweep, at_same_point


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one finished run.

    Attributes:
      mean_iou, macro_f1, accuracy: scores on the evaluated split.
      iou: class name -> IoU; None for a class that is neither labelled nor predicted.
      parameters: number of parameters used for inference, that is without the distillation adapters.
      steps: number of training steps.
      rates: training steps per second, one value per line of the timing log.
      validation: mIoU on the validation split of the checkpoint that counts; None if unknown.
    """

    mean_iou: float
    macro_f1: float
    accuracy: float
    iou: Mapping[str, float | None]
    parameters: int
    steps: int
    rates: Sequence[float]
    validation: float | None = None


Results = Mapping[str, Mapping[int, Result]]  # row -> seed -> result


@dataclasses.dataclass(frozen=True)
class Line:
    """Statistics of one row of a sweep.

    Attributes:
      row: name of the row.
      seeds: number of seeds.
      mean_iou, half_width: mean over seeds, and half the width of its 95 % interval (Student's t; NaN for one seed).
      macro_f1, accuracy, iou: means over seeds.
      gain, gain_half_width, p: mean paired difference in mIoU to the reference row, half the width of its 95 %
        interval, and the two-sided p value of the paired t test; None for the reference itself.
      corrected_p: the p value with Holm's correction over all rows that were tested; None and NaN as p.
      closed: share of the gap between the floor and the teacher that the row closes, over the seeds that all three
        rows share; None if undefined.
      parameters: number of parameters used for inference.
      seconds: training time of the row's own steps at the best decile of the logged rates (`undisturbed`), without
        compilation, evaluation and the teacher's training; None if no rate was logged.
      megapixels: inference speed in megapixels per second; None if not measured.
    """

    row: str
    seeds: int
    mean_iou: float
    half_width: float
    macro_f1: float
    accuracy: float
    iou: Mapping[str, float]
    gain: float | None
    gain_half_width: float | None
    p: float | None
    corrected_p: float | None
    closed: float | None
    parameters: int
    seconds: float | None
    megapixels: float | None = None


def collect(jobs: Sequence[Job]) -> dict[str, dict[int, Result]]:
    """Reads the results of all finished runs that belong to a row, in the order of `jobs`."""
    results: dict[str, dict[int, Result]] = {}
    for job in jobs:
        if job.row and is_finished(job):
            results.setdefault(job.row, {})[job.seed] = _result(job)
    return results


def with_choices(results: Results, sweep: Sweep) -> dict[str, dict[int, Result]]:
    """The results with the sweep's choices: rows that take, per seed, the row that is better on the validation split.

    A choice costs the training of all of its rows, so it has no training time of its own.
    """
    found = {row: dict(runs) for row, runs in results.items()}
    for name, candidates in sweep.choices.items():
        for row in [row for row in results if row == at_same_point(candidates[0], row)]:
            options = [results.get(at_same_point(other, row), {}) for other in candidates]
            for seed in set.intersection(*map(set, options)):
                runs = [runs[seed] for runs in options]
                if all(run.validation is not None for run in runs):
                    best = max(runs, key=lambda run: run.validation)
                    found.setdefault(at_same_point(name, row), {})[seed] = dataclasses.replace(best, rates=())
    return found


def _result(job: Job) -> Result:
    workdir = Workdir(job.root)
    row = read_json(workdir.evaluation)[job.config.eval.split][job.network]
    iou = {name: scores["iou"] for name, scores in row["per_class"].items()}
    record = _record(job, row["step"])
    return Result(
        row["mean_iou"],
        row["macro_f1"],
        row["accuracy"],
        iou,
        _parameters(record),
        job.steps,
        _rates(job),
        record.get("score"),
    )


def _rates(job: Job) -> list[float]:
    """Training rates from the timing log; empty if the run was too short to be timed."""
    entries, _ = read_log(Workdir(job.root).timing)
    return [entry["steps_per_second"] for entry in entries if entry["network"] == job.network]


def _record(job: Job, step: int) -> dict[str, Any]:
    try:
        return CheckpointReader(Workdir(job.root).checkpoints(job.network)).record(step)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; the table needs this checkpoint for the number of parameters") from error


def _parameters(record: Mapping[str, Any]) -> int:
    arrays = record["arrays"].items()
    return sum(int(np.prod(entry["shape"])) for path, entry in arrays if path.startswith("params/model/"))


def half_width(values: np.ndarray) -> float:
    """Half the width of the mean's 95 % interval (Student's t); NaN for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def lines_of(results: Results, sweep: Sweep, speed: Mapping[str, float]) -> list[Line]:
    """Computes the statistics of every row.

    Each row is compared with the sweep's reference, floor and teacher. In a sweep over an axis, each point of a curve
    is compared with the points at the same value. All tests form one family for the correction.

    Args:
      results: row -> seed -> result.
      sweep: names the reference, the floor and the teacher.
      speed: row -> inference speed in megapixels per second; rows may be missing.
    """
    lines = [_line(row, results, sweep, speed.get(row)) for row in results]
    tested = [place for place, line in enumerate(lines) if line.p is not None and not np.isnan(line.p)]
    for place, p in zip(tested, holm([lines[place].p for place in tested]), strict=True):
        lines[place] = dataclasses.replace(lines[place], corrected_p=p)
    return lines


def holm(values: Sequence[float]) -> list[float]:
    """Adjusts p values by Holm's step-down method, which bounds the chance of any false rejection in the family."""
    corrected, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(np.argsort(values)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
    return corrected


def _line(row: str, results: Results, sweep: Sweep, megapixels: float | None) -> Line:
    runs = list(results[row].values())
    values = np.array([run.mean_iou for run in runs])
    reference, floor, teacher = (at_same_point(name, row) for name in (sweep.reference, sweep.floor, sweep.teacher))
    gain = _gains(results, row, reference)
    compared = row != reference and len(gain) > 0
    closed = _closed(results, row, floor, teacher) if row not in (floor, teacher) else None
    iou = {name: [run.iou[name] for run in runs if run.iou[name] is not None] for name in runs[0].iou}
    return Line(
        row=row,
        seeds=len(runs),
        mean_iou=float(values.mean()),
        half_width=half_width(values),
        macro_f1=float(np.mean([run.macro_f1 for run in runs])),
        accuracy=float(np.mean([run.accuracy for run in runs])),
        iou={name: float(np.mean(scores)) if scores else float("nan") for name, scores in iou.items()},
        gain=float(gain.mean()) if compared else None,
        gain_half_width=half_width(gain) if compared else None,
        p=(p := _paired_p(gain) if compared else None),
        corrected_p=p,
        closed=closed,
        parameters=runs[0].parameters,
        seconds=undisturbed([rate for run in runs for rate in run.rates], runs[0].steps),
        megapixels=megapixels,
    )


def undisturbed(rates: Sequence[float], steps: int) -> float | None:
    """Seconds for `steps` steps at the best decile of the rates: other load on a machine only slows training."""
    return float(steps / np.quantile(rates, 0.9)) if rates else None


def _closed(results: Results, row: str, floor: str, teacher: str) -> float | None:
    low, reached, high = (results.get(name, {}) for name in (floor, row, teacher))
    seeds = low.keys() & reached.keys() & high.keys()
    gain, gap = (sum(top[seed].mean_iou - low[seed].mean_iou for seed in seeds) for top in (reached, high))
    return float(gain / gap) if gap > 0 else None


def _gains(results: Results, row: str, reference: str) -> np.ndarray:
    """Paired differences in mIoU, over the seeds that both rows share."""
    by_seed, baseline = results[row], results.get(reference, {})
    return np.array([by_seed[seed].mean_iou - baseline[seed].mean_iou for seed in by_seed if seed in baseline])


def _paired_p(gain: np.ndarray) -> float:
    if len(gain) < 2 or np.ptp(gain) < 1e-9:  # equal up to rounding: the t test is undefined
        return float("nan")
    return float(stats.ttest_1samp(gain, 0.0).pvalue)
