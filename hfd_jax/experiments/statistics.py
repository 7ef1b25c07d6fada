"""What a sweep has found: results per row and seed, paired differences, and tables in Markdown, CSV and LaTeX."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.errors import CheckpointError
from hfd_jax.core.logs import duration, read_log
from hfd_jax.core.workdir import Workdir, read_json
from hfd_jax.experiments.runner import is_finished
from hfd_jax.experiments.sweep import Job, Sweep, at_same_point


@dataclasses.dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
      mean_iou, macro_f1, accuracy: on the split that was evaluated.
      iou: class name -> IoU; None for a class that neither occurs nor is predicted.
      parameters: of the network as it is used, without adapters.
      steps: that it was trained for.
      rates: training steps per second so far, at every line of the log.
    """

    mean_iou: float
    macro_f1: float
    accuracy: float
    iou: Mapping[str, float | None]
    parameters: int
    steps: int
    rates: Sequence[float]


Results = Mapping[str, Mapping[int, Result]]  # row -> seed -> result


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
      row: its name.
      seeds: how many.
      mean_iou, half_width: mean over seeds, and half of its 95 % interval (Student's t; NaN for a single seed).
      macro_f1, accuracy, iou: means over seeds.
      gain, gain_half_width, p: paired difference in mIoU to the reference row, half of its 95 % interval, and the
        two-sided p value of the paired t test; None for the reference itself.
      closed: share of the gap between the undistilled student and the teacher that the row closes, over the seeds that
        all three have; None where it has no meaning.
      parameters, seconds, megapixels: cost; seconds are of the row's own training steps, without its teacher's, without
        compilation and evaluation, at the pace that it kept when nothing disturbed it (`undisturbed`); megapixels a
        second are of inference, None where not measured.
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
    closed: float | None
    parameters: int
    seconds: float | None
    megapixels: float | None = None


def collect(jobs: Sequence[Job]) -> dict[str, dict[int, Result]]:
    """The results of the finished runs that are rows, in the order of `jobs`."""
    results: dict[str, dict[int, Result]] = {}
    for job in jobs:
        if job.row and is_finished(job):
            results.setdefault(job.row, {})[job.seed] = _result(job)
    return results


def _result(job: Job) -> Result:
    workdir = Workdir(job.root)
    row = read_json(workdir.evaluation)[job.config.eval.split][job.network]
    iou = {name: scores["iou"] for name, scores in row["per_class"].items()}
    return Result(
        row["mean_iou"], row["macro_f1"], row["accuracy"], iou, _parameters(job, row["step"]), job.steps, _rates(job)
    )


def _rates(job: Job) -> list[float]:
    """What the workdir has of the network's pace; nothing where the run was too short to be timed."""
    entries, _ = read_log(Workdir(job.root).timing)
    return [entry["steps_per_second"] for entry in entries if entry["network"] == job.network]


def _parameters(job: Job, step: int) -> int:
    try:
        record = CheckpointReader(Workdir(job.root).checkpoints(job.network)).record(step)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; it has been evaluated, and its size is part of the table") from error
    arrays = record["arrays"].items()
    return sum(int(np.prod(entry["shape"])) for path, entry in arrays if path.startswith("params/model/"))


def half_width(values: np.ndarray) -> float:
    """Half of the 95 % interval of the mean (Student's t); NaN for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def lines_of(results: Results, sweep: Sweep, speed: Mapping[str, float]) -> list[Line]:
    """The table's rows: of `results`, against the sweep's reference, floor and teacher, points of curves against those
    of the same place; `speed` has Mpixel/s of inference, as far as measured."""
    return [_line(row, results, sweep, speed.get(row)) for row in results]


def _line(row: str, results: Results, sweep: Sweep, megapixels: float | None) -> Line:
    mine = list(results[row].values())
    values = np.array([result.mean_iou for result in mine])
    reference, floor, teacher = (at_same_point(name, row) for name in (sweep.reference, sweep.floor, sweep.teacher))
    gain = _gains(results, row, reference)
    compared = row != reference and len(gain) > 0
    closed = _closed(results, row, floor, teacher) if row not in (floor, teacher) else None
    names = mine[0].iou
    found = {name: [result.iou[name] for result in mine if result.iou[name] is not None] for name in names}
    return Line(
        row=row,
        seeds=len(mine),
        mean_iou=float(values.mean()),
        half_width=half_width(values),
        macro_f1=float(np.mean([result.macro_f1 for result in mine])),
        accuracy=float(np.mean([result.accuracy for result in mine])),
        iou={name: float(np.mean(scores)) if scores else float("nan") for name, scores in found.items()},
        gain=float(gain.mean()) if compared else None,
        gain_half_width=half_width(gain) if compared else None,
        p=_paired_p(gain) if compared else None,
        closed=closed,
        parameters=mine[0].parameters,
        seconds=undisturbed([rate for result in mine for rate in result.rates], mine[0].steps),
        megapixels=megapixels,
    )


def undisturbed(rates: Sequence[float], steps: int) -> float | None:
    """Seconds that so many steps take at the best decile of the rates: other work on a machine only ever slows it."""
    return float(steps / np.quantile(rates, 0.9)) if rates else None


def _closed(results: Results, row: str, floor: str, teacher: str) -> float | None:
    low, mine, high = (results.get(name, {}) for name in (floor, row, teacher))
    seeds = low.keys() & mine.keys() & high.keys()
    gain, gap = (sum(top[seed].mean_iou - low[seed].mean_iou for seed in seeds) for top in (mine, high))
    return float(gain / gap) if gap > 0 else None


def _gains(results: Results, row: str, reference: str) -> np.ndarray:
    """Differences in mIoU over the seeds that both rows have."""
    mine, theirs = results[row], results.get(reference, {})
    return np.array([mine[seed].mean_iou - theirs[seed].mean_iou for seed in mine if seed in theirs])


def _paired_p(gain: np.ndarray) -> float:
    if len(gain) < 2 or np.ptp(gain) < 1e-9:  # equal but for rounding: there is no spread to test against
        return float("nan")
    return float(stats.ttest_1samp(gain, 0.0).pvalue)


def cells(lines: Sequence[Line]) -> list[list[str]]:
    """Header and rows of the main table as text; what has no value is empty."""
    header = ["row", "seeds", "mIoU (95 % interval)", "difference (95 % interval)", "p", "gap closed", "macro F1"]
    header += ["parameters", "training", "Mpixel/s"]
    return [header, *([line.row, str(line.seeds), *_scores(line), *_costs(line)] for line in lines)]


def _scores(line: Line) -> list[str]:
    gain = "" if line.gain is None else _interval(f"{line.gain:+.3f}", line.gain_half_width)
    p = "" if line.p is None or np.isnan(line.p) else "< 0.001" if line.p < 0.001 else f"{line.p:.3f}"
    closed = "" if line.closed is None else f"{line.closed:.0%}"
    return [_interval(f"{line.mean_iou:.3f}", line.half_width), gain, p, closed, f"{line.macro_f1:.3f}"]


def _interval(mean: str, half: float | None) -> str:
    return mean if half is None or np.isnan(half) else f"{mean} ± {half:.3f}"


def _costs(line: Line) -> list[str]:
    time = "" if line.seconds is None else duration(line.seconds)
    speed = "" if line.megapixels is None else f"{line.megapixels:.2f}"
    return [size(line.parameters), time, speed]


def size(parameters: int) -> str:
    """ "786 k" or "2.50 M"."""
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e6 else f"{parameters / 1e3:.0f} k"


def class_cells(lines: Sequence[Line]) -> list[list[str]]:
    """Header and rows of the table of IoU per class."""
    names = list(lines[0].iou)
    return [["row", *names], *([line.row, *(_number(line.iou[name]) for name in names)] for line in lines)]


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"


def markdown(table: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(table[0]) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (table[0], rule, *table[1:]))


def latex(table: Sequence[Sequence[str]]) -> str:
    """A tabular with booktabs' rules."""
    special = str.maketrans({"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "±": r"$\pm$", "<": "$<$", "$": r"\$"})
    rows = [" & ".join(cell.translate(special) for cell in row) + r" \\" for row in table]
    begin = r"\begin{tabular}{l" + "r" * (len(table[0]) - 1) + "}"
    return "\n".join([begin, r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}"])


def comma_separated(lines: Sequence[Line]) -> str:
    """All numbers of the lines, unrounded; one column per class."""
    file = io.StringIO()
    rows = [_flat(line) for line in lines]
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _flat(line: Line) -> dict[str, Any]:
    values = dataclasses.asdict(line)
    iou = values.pop("iou")
    return values | {f"iou {name}": value for name, value in iou.items()}
