"""Pools the results of one sweep over several data sets, for example the folds of a cross-validation.

Seeds of one fold share its tiles, so they say little about a new place. A fold therefore counts once, with the mean of
its seeds, and all intervals and tests are over folds.
"""

from collections.abc import Sequence

import numpy as np

from hfd_jax.core.errors import ConfigError
from hfd_jax.experiments.statistics import Result
from hfd_jax.experiments.stored import Stored


def pooled(parts: Sequence[Stored]) -> Stored:
    """Pools the results of folds; a single part is returned as it is.

    Of every fold, the seeds that all of its rows have are used.

    Raises:
      ConfigError: the parts are of different sweeps, splits or rows, or a fold has no seed that all of its rows have.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    for name, values in (
        ("sweeps", [part.sweep.name for part in parts]),
        ("splits", [part.split for part in parts]),
        ("rows", [", ".join(sorted(part.results)) for part in parts]),
    ):
        if len(set(values)) > 1:
            raise ConfigError(f"results of different {name} cannot be pooled: {'; '.join(dict.fromkeys(values))}")
    seeds = [_common_seeds(part) for part in parts]
    results = {
        row: {fold: mean_result([part.results[row][s] for s in seeds[fold]]) for fold, part in enumerate(parts)}
        for row in first.results
    }
    speed = {row: float(np.mean([p.speed[row] for p in parts])) for row in first.speed if _all_have(row, parts)}
    command = "\n".join(part.command for part in parts)
    return Stored(first.sweep, command, first.split, results, speed, first.places, first.versions, unit="fold")


def mean_result(results: Sequence[Result]) -> Result:
    """The mean scores of several runs of one row, with the training rates of all."""
    mean = {score: float(np.mean([getattr(result, score) for result in results])) for score in _SCORES}
    iou = {name: _mean_of_known([result.iou[name] for result in results]) for name in results[0].iou}
    rates = [rate for result in results for rate in result.rates]
    return Result(**mean, iou=iou, parameters=results[0].parameters, steps=results[0].steps, rates=rates)


def _mean_of_known(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else None


_SCORES = ("mean_iou", "macro_f1", "accuracy")


def _common_seeds(part: Stored) -> list[int]:
    common = sorted(set.intersection(*(set(runs) for runs in part.results.values())))
    if not common:
        raise ConfigError(f"no seed has a result in every row of {part.command}")
    return common


def _all_have(row: str, parts: Sequence[Stored]) -> bool:
    return all(row in part.speed for part in parts)
