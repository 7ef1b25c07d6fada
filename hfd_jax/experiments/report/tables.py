"""Rows of the report's tables: scores of all networks of all runs, and the fields in which configs differ."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hfd_jax.evaluation.metrics import Scores
from hfd_jax.experiments.report.records import StoredRun, flat

REFERENCE = "sar_only"
MISSING = object()
NO_VALUE = "\N{EN DASH}"


@dataclasses.dataclass(frozen=True)
class Row:
    """The scores of one network of a run.

    Attributes:
      run, network, title: names of the run and the network, and the network's title.
      step: step of the evaluated checkpoint.
      scores: scores on the split.
      gain: difference in mIoU to the SAR-only student of the same run; None for that student, for the teacher, and if
        the run has no SAR-only student.
      closed: share of the gap between the SAR-only student and the teacher that the distilled student closes; None for
        other networks, and if the teacher does not score higher than the SAR-only student.
    """

    run: str
    network: str
    title: str
    step: int
    scores: Scores
    gain: float | None
    closed: float | None


def score_rows(run: StoredRun) -> list[Row]:
    """Returns the rows of one run, in the order of its networks."""
    mean_iou = {name: entry.scores.mean_iou for name, entry in run.evaluated.items()}
    reference, teacher = mean_iou.get(REFERENCE), mean_iou.get("teacher")
    rows = []
    for name in run.networks():
        if name not in mean_iou:
            continue
        entry = run.evaluated[name]
        gain = mean_iou[name] - reference if reference is not None and name not in (REFERENCE, "teacher") else None
        has_gap = name == "student" and gain is not None and teacher is not None and teacher > reference
        closed = gain / (teacher - reference) if has_gap else None
        rows.append(Row(run.name, name, entry.title, entry.step, entry.scores, gain, closed))
    return rows


def by_classes(rows: Sequence[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Groups rows by their classes; only rows with the same classes share a table."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.scores.class_names, []).append(row)
    return groups


def row_shares(matrix: np.ndarray) -> np.ndarray:
    """Normalises each row of [K, K] counts to sum 1; rows of absent classes remain 0."""
    return matrix / np.maximum(matrix.sum(1, keepdims=True), 1)


def changed_fields(defaults: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (field, default, value) for every field that differs from its default."""
    before, now = flat(dict(defaults)), flat(dict(config))
    return [
        (field, _shown(before.get(field, MISSING)), _shown(value))
        for field, value in now.items()
        if before.get(field, MISSING) != value
    ]


def differing_fields(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Returns (field, value in each config) for every field that differs between configs."""
    fields = [flat(dict(config)) for config in configs]
    names = dict.fromkeys(name for one in fields for name in one)
    found = {name: [one.get(name, MISSING) for one in fields] for name in names}
    return [
        (name, [_shown(value) for value in values])
        for name, values in found.items()
        if any(value != values[0] for value in values[1:])
    ]


def all_fields(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (field, value) for every field of a config."""
    return [(field, _shown(value)) for field, value in flat(dict(config)).items()]


def _shown(value: Any) -> str:
    if value is MISSING:
        return NO_VALUE
    return f"({', '.join(map(str, value))})" if isinstance(value, list | tuple) else repr(value)
