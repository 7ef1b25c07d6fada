"""Rows of the report's tables: scores of all networks of all runs, and the fields in which configs differ."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hfd_jax.evaluation.metrics import Scores
from hfd_jax.experiments.report.records import RunFiles, flat

REFERENCE = "sar_only"
MISSING = object()
NONE = "\N{EN DASH}"


@dataclasses.dataclass(frozen=True)
class Row:
    """A network of a run and what it reaches.

    Attributes:
      run, network, title: whose scores.
      step: of the checkpoint.
      scores: on the split.
      gain: in mIoU over the SAR-only student of the same run; None where there is none, and for itself.
      closed: share of the difference between teacher and SAR-only student that the distilled student makes up for;
        None for other networks, and where the teacher is not the better one.
    """

    run: str
    network: str
    title: str
    step: int
    scores: Scores
    gain: float | None
    closed: float | None


def score_rows(run: RunFiles) -> list[Row]:
    """Rows of one run, in the order of its networks."""
    reached = {name: entry.scores.mean_iou for name, entry in run.evaluated.items()}
    floor, ceiling = reached.get(REFERENCE), reached.get("teacher")
    rows = []
    for name in run.networks():
        if name not in reached:
            continue
        entry = run.evaluated[name]
        gain = reached[name] - floor if floor is not None and name not in (REFERENCE, "teacher") else None
        known = name == "student" and gain is not None and ceiling is not None and ceiling > floor
        closed = gain / (ceiling - floor) if known else None
        rows.append(Row(run.name, name, entry.title, entry.step, entry.scores, gain, closed))
    return rows


def by_classes(rows: Sequence[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Rows that have the same classes, together: only those fit in one table."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.scores.class_names, []).append(row)
    return groups


def shares(matrix: np.ndarray) -> np.ndarray:
    """[K, K] counts -> share of each row's sum; a class that does not occur has zeros."""
    return matrix / np.maximum(matrix.sum(1, keepdims=True), 1)


def changed(defaults: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(field, default, value) of a config's fields that are not as the defaults have them."""
    before, now = flat(dict(defaults)), flat(dict(config))
    return [
        (field, _shown(before.get(field, MISSING)), _shown(value))
        for field, value in now.items()
        if before.get(field, MISSING) != value
    ]


def differing(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(field, its value in every config) of the fields that are not the same in all."""
    fields = [flat(dict(config)) for config in configs]
    names = dict.fromkeys(name for one in fields for name in one)
    found = {name: [one.get(name, MISSING) for one in fields] for name in names}
    return [
        (name, [_shown(value) for value in values])
        for name, values in found.items()
        if any(value != values[0] for value in values[1:])
    ]


def everything(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(field, value) of a whole config."""
    return [(field, _shown(value)) for field, value in flat(dict(config)).items()]


def _shown(value: Any) -> str:
    if value is MISSING:
        return NONE
    return f"({', '.join(map(str, value))})" if isinstance(value, list | tuple) else repr(value)
