"""The figure of a sweep: mIoU per row with every seed, or curves over one config field."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hfd_jax.core.errors import writing
from hfd_jax.core.logs import duration
from hfd_jax.experiments.statistics import Line, Results
from hfd_jax.experiments.sweep import Sweep, curve
from hfd_jax.experiments.tables import size

INK, FAINT, COLOURS = "#1f2933", "#9aa5b1", ("#0b6e99", "#c2410c", "#4d7c0f", "#7c3aed", "#be185d", "#92400e")


def draw(path: str, lines: Sequence[Line], results: Results, sweep: Sweep, places: Mapping[str, Any]) -> None:
    """Writes `scores` as a PNG."""
    _write(path, scores(lines, results, sweep, places))


def scores(
    lines: Sequence[Line], results: Results, sweep: Sweep, places: Mapping[str, Any], unit: str = "seed"
) -> Figure:
    """mIoU per row; `places` maps rows to their values on the sweep's axis and is empty for a sweep without an axis."""
    if places:
        return _curves(lines, results, places, sweep.axis, unit)
    return _dots(lines, results, sweep, unit)


def png(figure: Figure) -> bytes:
    """Renders a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")  # includes the columns beside the axes
    return buffer.getvalue()


def _write(path: str, figure: Figure) -> None:
    with writing(path), open(path, "wb") as file:
        file.write(png(figure))


def _dots(lines: Sequence[Line], results: Results, sweep: Sweep, unit: str) -> Figure:
    figure = Figure(figsize=(8.5, 1.1 + 0.36 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for place, line in enumerate(reversed(lines)):
        values = [result.mean_iou for result in results[line.row].values()]
        axes.plot(values, [place] * len(values), "o", color=FAINT, markersize=3.5, zorder=2)
        width = 0.0 if np.isnan(line.half_width) else line.half_width
        axes.errorbar(line.mean_iou, place, xerr=width, fmt="o", color=COLOURS[0], capsize=3, markersize=6, zorder=3)
    _costs(axes, lines)
    for row, style in ((sweep.floor, "--"), (sweep.teacher, ":")):
        found = [line for line in lines if line.row == row]
        if found:
            axes.axvline(found[0].mean_iou, color=INK, linestyle=style, linewidth=1, zorder=1)
            axes.text(found[0].mean_iou, len(lines) - 0.4, row, fontsize=8, ha="center", va="bottom", color=INK)
    axes.set_yticks(range(len(lines)), [line.row for line in reversed(lines)], fontsize=9)
    axes.set(ylim=(-0.6, len(lines) - 0.4))
    _finish(axes, "x", f"mIoU: mean with 95 % interval; small dots: {unit}s")
    return figure


def _costs(axes: Any, lines: Sequence[Line]) -> None:
    """Writes the gap closed and the costs of each row beside its point."""
    columns = {
        "gap\nclosed": ["" if line.closed is None else f"{line.closed:.0%}" for line in lines],
        "para-\nmeters": [size(line.parameters) for line in lines],
        "train-\ning": ["" if line.seconds is None else duration(line.seconds) for line in lines],
    }
    style = {"transform": axes.get_yaxis_transform(), "fontsize": 8, "ha": "right", "color": INK}
    for number, (title, texts) in enumerate((t, c) for t, c in columns.items() if any(c)):
        x = 1.09 + 0.1 * number
        axes.text(x, len(lines) - 0.4, title, va="bottom", **style)
        for place, text in enumerate(reversed(texts)):
            axes.text(x, place, text, va="center", **style)


def _curves(lines: Sequence[Line], results: Results, places: Mapping[str, Any], field: str, unit: str) -> Figure:
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axes = figure.subplots()
    curves: dict[str, list[Line]] = {}
    for line in lines:
        curves.setdefault(curve(line.row), []).append(line)
    for number, ((name, points), colour) in enumerate(zip(curves.items(), COLOURS * len(curves), strict=False)):
        points = sorted(points, key=lambda line: places[line.row])
        beside = 1.02 ** (number - (len(curves) - 1) / 2)  # so that the intervals of a place stand side by side
        at = [places[line.row] * beside for line in points]
        widths = [0.0 if np.isnan(line.half_width) else line.half_width for line in points]
        axes.errorbar(at, [p.mean_iou for p in points], yerr=widths, fmt="o-", color=colour, capsize=3, label=name)
        for x, line in zip(at, points, strict=True):
            values = [result.mean_iou for result in results[line.row].values()]
            axes.plot([x] * len(values), values, ".", color=colour, alpha=0.4, markersize=5)
    ticks = sorted(set(places.values()))
    axes.set_xlabel(field, fontsize=9)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.minorticks_off()
    _finish(axes, "y", f"mIoU: mean with 95 % interval; small dots: {unit}s")
    axes.legend(frameon=False, fontsize=9)
    return figure


def draw_speed(path: str, lines: Sequence[Line], sweep: Sweep) -> bool:
    """Writes `speeds` as a PNG; returns False, without writing anything, if there is none."""
    figure = speeds(lines, sweep)
    if figure:
        _write(path, figure)
    return figure is not None


def speeds(lines: Sequence[Line], sweep: Sweep) -> Figure | None:
    """mIoU over inference speed, with the front of rows that no faster row equals.

    Rows without a speed and the teacher, which reads another sensor, are left out. None if the remaining rows do not
    differ in speed.
    """
    shown = [line for line in lines if line.megapixels and curve(line.row) != sweep.teacher]
    if len({line.megapixels for line in shown}) < 2:
        return None
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for line in shown:
        width = 0.0 if np.isnan(line.half_width) else line.half_width
        best = line in speed_front(shown)
        axes.errorbar(
            line.megapixels, line.mean_iou, yerr=width, fmt="o", color=COLOURS[0] if best else FAINT, capsize=3
        )
        axes.annotate(
            line.row, (line.megapixels, line.mean_iou), (6, 4), textcoords="offset points", fontsize=8, color=INK
        )
    front = speed_front(shown)
    axes.step([p.megapixels for p in front], [p.mean_iou for p in front], where="pre", color=COLOURS[0], linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("inference, megapixels per second", fontsize=9)
    axes.margins(x=0.2)
    _finish(axes, "y", "mIoU: mean with 95 % interval")
    return figure


def speed_front(lines: Sequence[Line]) -> list[Line]:
    """Returns the lines that no line of the same or a higher speed surpasses in mIoU, from slow to fast."""
    front: list[Line] = []
    for line in sorted(lines, key=lambda line: (-line.megapixels, -line.mean_iou)):
        if not front or line.mean_iou > front[-1].mean_iou:
            front.append(line)
    return front[::-1]


def _finish(axes: Any, which: str, label: str) -> None:
    getattr(axes, f"set_{which}label")(label, fontsize=9)
    axes.grid(axis=which, alpha=0.3)
    axes.tick_params(labelsize=9, color=FAINT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
