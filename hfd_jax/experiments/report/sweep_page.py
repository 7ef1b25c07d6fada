"""Renders the results of a sweep as one self-contained HTML file: statistics, pictures, classes, seeds, command."""

import base64
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from hfd_jax.experiments import figure, tables
from hfd_jax.experiments.report.page import make_environment, score
from hfd_jax.experiments.stored import Stored
from hfd_jax.experiments.sweep import curve


def render(stored: Stored) -> str:
    """Renders the page."""
    lines, sweep = stored.lines, stored.sweep
    students = [line for line in lines if curve(line.row) != sweep.teacher]
    pictures = {
        "mIoU of every row": figure.scores(lines, stored.results, sweep, stored.places, stored.unit),
        "mIoU over inference speed": figure.speeds(lines, sweep),
    }
    classes = {
        name: [line.iou.get(name, float("nan")) for line in lines] for line in lines for name in line.iou
    }  # in the order of the classes
    seeds = sorted({seed for runs in stored.results.values() for seed in runs})
    return (
        make_environment()
        .get_template("sweep.html.jinja")
        .render(
            stored=stored,
            seeds=seeds,
            best=max(students, key=lambda line: line.mean_iou, default=None),
            scores=_cells(tables.score_table(lines, stored.unit)),
            verdict=tables.verdict(lines, sweep.reference),
            pictures=[(title, _data_url(drawn)) for title, drawn in pictures.items() if drawn],
            classes=list(classes),
            class_rows=[(line.row, [classes[name][place] for name in classes]) for place, line in enumerate(lines)],
            seed_rows=[(row, [_mean_iou(runs.get(seed)) for seed in seeds]) for row, runs in stored.results.items()],
        )
    )


def _cells(table: pd.DataFrame) -> dict[str, Any]:
    return {"names": list(table.columns), "rows": table.to_numpy().tolist()}


def _mean_iou(result: Any) -> str:
    return score(None if result is None else result.mean_iou)


def _data_url(drawn: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(figure.png(drawn)).decode()
