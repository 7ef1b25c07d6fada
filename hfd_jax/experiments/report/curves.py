"""Learning curves as small SVG charts, one for each numeric quantity of a log."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from hfd_jax.experiments.report.records import StoredRun

# Chart geometry in SVG units; the page scales the chart.
WIDTH, HEIGHT = 320, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 22
MAX_POINTS = 300
# Curves with at most this many points show markers.
MARKED = 12
# The y axis is logarithmic if the ratio of the largest to the smallest value exceeds this.
LOGARITHMIC = 30
DASHES = ("", "7 3", "2 3", "9 3 2 3", "14 4", "5 3 1 3 1 3")
GROUPS = (
    ("Validation", "Scores on the validation split, at the steps at which the run evaluated it.", r"validation_"),
    ("Loss terms, weighted", "Terms of the total loss; each point is a mean since the previous line of the log.", r""),
    ("Share of the total loss", "", r"share_"),
    ("Distillation per tap, unweighted", "", r".*_(C\d|A)$"),
    ("Optimisation", "skipped: cumulative number of non-finite steps.", r"learning_rate|grad_norm|skipped"),
)
OTHERS = 1  # index of the default group


@dataclasses.dataclass(frozen=True)
class Line:
    """The curve of one network of one run: labels, points as "x,y x,y ...", markers, and the last value as text."""

    network: str
    run: str
    title: str
    dash: str
    points: str
    marks: list[tuple[float, float]]
    last: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """One quantity over the steps: lines and ticks as (position, text)."""

    name: str
    logarithmic: bool
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


@dataclasses.dataclass(frozen=True)
class Group:
    """Charts under one heading."""

    title: str
    note: str
    charts: list[Chart]


@dataclasses.dataclass(frozen=True)
class _Series:
    """The finite values of one quantity for one network; `steps` and `values` are [N] float64."""

    run: StoredRun
    network: str
    dash: str
    steps: np.ndarray
    values: np.ndarray


def learning_curves(runs: Sequence[StoredRun]) -> list[Group]:
    """Returns one chart per logged quantity, with the curves of all networks of all runs, in groups."""
    names = dict.fromkeys(key for run in runs for line in run.log for key in line if is_quantity(line, key))
    last = max((line["step"] for run in runs for line in run.log), default=0)
    groups: list[list[Chart]] = [[] for _ in GROUPS]
    for name in names:
        series = [
            found
            for number, run in enumerate(runs)
            for network in run.networks()
            if (found := _series(run, network, name, DASHES[number % len(DASHES)])) is not None
        ]
        if series:
            groups[group_of(name)].append(chart(name, series, last))
    return [Group(title, note, charts) for (title, note, _), charts in zip(GROUPS, groups, strict=True) if charts]


def is_quantity(line: Mapping[str, Any], key: str) -> bool:
    return key not in ("network", "step") and isinstance(line[key], int | float)


def group_of(name: str) -> int:
    """Returns the index in GROUPS of a quantity's group."""
    matching = (k for k, (_, _, pattern) in enumerate(GROUPS) if pattern and re.match(pattern, name))
    return next(matching, OTHERS)


def _series(run: StoredRun, network: str, name: str, dash: str) -> _Series | None:
    found = [(line["step"], line[name]) for line in run.log if line["network"] == network and name in line]
    found = [(step, value) for step, value in found if np.isfinite(value)]
    if not found:
        return None
    steps, values = (np.array(column, np.float64) for column in zip(*found, strict=True))
    return _Series(run, network, dash, thinned(steps), thinned(values))


def thinned(values: np.ndarray) -> np.ndarray:
    """Reduces more than MAX_POINTS values to MAX_POINTS means of neighbours."""
    if len(values) <= MAX_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, MAX_POINTS)])


def chart(name: str, series: Sequence[_Series], last_step: int) -> Chart:
    """Returns the chart of one quantity over the steps from 0 to `last_step`."""
    values = np.concatenate([one.values for one in series])
    from_zero = name.startswith("share_") or name == "skipped"
    logarithmic = bool(not from_zero and values.min() > 0 and values.max() > LOGARITHMIC * values.min())
    x, x_ticks = axis(0.0, float(last_step), LEFT, WIDTH - RIGHT)
    low, high = float(values.min()), float(values.max())
    if from_zero:
        low, high = 0.0, max(high, 1.0)
    y, y_ticks = (log_axis if logarithmic else axis)(low, high, HEIGHT - BOTTOM, TOP)
    lines = [
        Line(
            one.network,
            one.run.name,
            one.run.title(one.network),
            one.dash,
            " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(one.steps, one.values, strict=True)),
            [(x(s), y(v)) for s, v in zip(one.steps, one.values, strict=True)] if len(one.steps) <= MARKED else [],
            f"{one.values[-1]:.4g}",
        )
        for one in series
    ]
    return Chart(name, logarithmic, lines, x_ticks, y_ticks)


Scale = tuple[Callable[[float], float], list[tuple[float, str]]]


def axis(low: float, high: float, start: float, end: float) -> Scale:
    """Returns (value -> position, ticks) of a linear axis from position `start` to `end`."""
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)

    def position(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    slack = 1e-9 * (high - low)
    values = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return position, [(position(v), number(v)) for v in values if low - slack <= v <= high + slack]


def log_axis(low: float, high: float, start: float, end: float) -> Scale:
    """Logarithmic version of `axis`; ticks are powers of ten, and multiples of them if there are fewer than three."""
    position, _ = axis(np.log10(low), np.log10(high), start, end)
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        values = [value for value in values if low <= value <= high]
        if len(values) >= 3:
            break
    return lambda value: position(np.log10(value)), [(position(np.log10(v)), number(v)) for v in values]


def number(value: float) -> str:
    """Formats a tick label: 0.002, 250, 1.5k, 1e-05."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.0e}"
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:.6g}"
