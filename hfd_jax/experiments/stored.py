"""The results of a sweep as a JSON file: every run's scores, the statistics made of them, and the command.

Pages are made from this file.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from hfd_jax.core.errors import WorkdirError
from hfd_jax.core.workdir import read_json, write_json
from hfd_jax.experiments.statistics import Line, Result, Results, lines_of
from hfd_jax.experiments.sweep import Sweep


@dataclasses.dataclass(frozen=True)
class Stored:
    """The contents of a results file.

    Attributes:
      sweep: name, reference, floor, axis and the rows that have results; of a row's fields only "stage" is kept.
      command: the command that made the file.
      split: the evaluated split of the data set.
      results: row -> seed -> result.
      speed: row -> inference speed in megapixels per second; rows may be missing.
      places: row -> value on the sweep's axis; empty for a sweep without an axis.
      versions: package -> version.
      unit: what a result's number counts, "seed" or "fold".
    """

    sweep: Sweep
    command: str
    split: str
    results: Results
    speed: Mapping[str, float]
    places: Mapping[str, float]
    versions: Mapping[str, str]
    unit: str = "seed"

    @property
    def lines(self) -> list[Line]:
        return lines_of(self.results, self.sweep, self.speed)


def write(path: str, stored: Stored) -> None:
    """Writes a results file; undefined values (NaN) become null."""
    statistics = {line.row: dataclasses.asdict(line) for line in stored.lines}
    rows = {
        row: {
            "stage": stored.sweep.rows.get(row, {}).get("stage", "student"),
            "place": stored.places.get(row),
            "seeds": {str(seed): dataclasses.asdict(result) for seed, result in runs.items()},
            "statistics": statistics[row],
        }
        for row, runs in stored.results.items()
    }
    sweep = {name: getattr(stored.sweep, name) for name in ("name", "config", "reference", "floor", "axis")}
    values = {"command": stored.command, "split": stored.split, "sweep": sweep, "versions": dict(stored.versions)}
    write_json(path, _without_nan(values | {"rows": rows}))


def read(path: str) -> Stored:
    """Reads a results file; the statistics are computed again.

    Raises:
      WorkdirError: the file is missing or is not a results file.
    """
    values = read_json(path)
    try:
        rows = values["rows"]
        sweep = Sweep(rows={row: _stage(entry) for row, entry in rows.items()}, **values["sweep"])
        results = {
            row: {int(seed): Result(**result) for seed, result in entry["seeds"].items()} for row, entry in rows.items()
        }
        speeds = {row: entry["statistics"]["megapixels"] for row, entry in rows.items()}
        places = {row: entry["place"] for row, entry in rows.items()}
        return Stored(
            sweep, values["command"], values["split"], results, _known(speeds), _known(places), values["versions"]
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise WorkdirError(f"{path}: not a results file of tools.compare ({type(error).__name__}: {error})") from error


def _stage(entry: Mapping[str, Any]) -> dict[str, str]:
    return {"stage": entry["stage"]} if entry["stage"] == "teacher" else {}


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {row: value for row, value in values.items() if value is not None}


def _without_nan(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _without_nan(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and math.isnan(values) else values
