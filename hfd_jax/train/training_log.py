"""The log of one network's training: means of the metrics, skipped steps and validation scores.

A step whose loss, gradient or batch statistics are not finite leaves the state unchanged (`steps._update`). The
log reports the loss terms and tiles of such steps. Too many of them in a row end the run.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hfd_jax.core import logs
from hfd_jax.core.errors import DivergedError
from hfd_jax.core.logs import say

Row = Mapping[str, float]
DESCRIBED = 10


class TrainingLog:
    """Writes the metrics of one network to the console, metrics.jsonl and TensorBoard.

    Args:
      network: its name.
      log, summaries: where numbers go.
      progress: measures the pace and the time left.
      schedule: maps an update to its learning rate.
      tiles: maps a step to the ids of the tiles in its batch; may read files, called for skipped steps only.
      max_bad_steps: number of consecutive skipped steps that raise an error.
      saved: returns a sentence that names the newest checkpoint.
      unlogged: metrics of the last steps that no line of the log has yet.
      timing: receives the steps per second; separate from `log`, which does not depend on where a run was resumed.
    """

    def __init__(
        self,
        network: str,
        log: logs.MetricsLog,
        summaries: logs.Summaries,
        progress: logs.Progress,
        schedule: Callable[[int], Any],
        tiles: Callable[[int], list[str]],
        max_bad_steps: int,
        saved: Callable[[], str],
        unlogged: Sequence[Row] = (),
        timing: logs.MetricsLog | None = None,
    ):
        self._network, self._log, self._summaries, self._progress = network, log, summaries, progress
        self._schedule, self._tiles, self._max_bad_steps, self._saved = schedule, tiles, max_bad_steps, saved
        self._unlogged, self._timing = list(unlogged), timing
        self._latest: Mapping[str, Any] = unlogged[-1] if unlogged else {"bad_steps": 0}

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds the metrics of a step, which may still be computed on the device."""
        self._unlogged.append(metrics)
        self._latest = metrics
        self._progress.tick(step)

    def skipped_last(self) -> bool:
        """Whether the last step was skipped; waits for the device."""
        return bool(self._latest["bad_steps"])

    def unlogged(self) -> list[Row]:
        """The metrics since the last line as plain numbers, for a checkpoint; waits for the device."""
        return logs.rows_of(self._unlogged)

    def write(self, step: int) -> None:
        """Writes the means since the last line. Raises DivergedError after too many consecutive skipped steps."""
        rows, self._unlogged = self.unlogged(), []
        faults = faults_of(rows, step, self._tiles)
        values = mean_of(rows)
        # A skipped step does not move the optimiser on along its schedule.
        values["learning_rate"] = float(self._schedule(max(step - 1 - int(values["skipped"]), 0)))
        say(f"{self._network:>12}  {self._progress.text(step)}  {logs.short(values)}")
        for fault in faults:
            say(f"{self._network:>12}  update skipped at {describe(fault)}")
        self._log.write(self._network, step, values | ({"faults": faults} if faults else {}))
        self._summaries.scalars(step, values)
        self._time(step)
        if max(row["bad_steps"] for row in rows) >= self._max_bad_steps:
            raise DivergedError(
                f"{self._network}: {self._max_bad_steps} steps in a row (config.train.max_bad_steps) were skipped: "
                f"a loss or gradient was not finite; {describe(faults[0])}. {self._saved()}. A smaller "
                "config.optim.learning_rate may help, or tools.check_data on the data set"
            )

    def validated(self, step: int, mean_iou: float, accuracy: float) -> None:
        """Writes scores on the validation split."""
        values = {"validation_mean_iou": mean_iou, "validation_accuracy": accuracy}
        say(f"{self._network:>12}  {step}: validation mIoU {mean_iou:.4f}")
        self._log.write(self._network, step, values)
        self._summaries.scalars(step, values)

    def pictures(self, step: int, draw: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Writes images to TensorBoard, see `Summaries.images`."""
        self._summaries.images(step, draw)

    def _time(self, step: int) -> None:
        rate = self._progress.rate(step) if self._timing else None
        if rate is not None:
            devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
            self._timing.write(self._network, step, {"steps_per_second": rate, "devices": devices})
            self._summaries.scalars(step, {"steps_per_second": rate})

    def close(self) -> None:
        """Raises WorkdirError if lines of a log still cannot be written."""
        self._summaries.close()
        for log in filter(None, (self._log, self._timing)):
            log.close()


def mean_of(rows: Sequence[Row]) -> dict[str, float]:
    """Returns the mean of every metric over the steps that were not skipped, and the total number "skipped"."""
    good = [row for row in rows if not row["bad_steps"]]
    names = [name for name in good[0] if name not in ("skipped", "bad_steps")] if good else []
    means = {name: math.fsum(row[name] for row in good) / len(good) for name in names}
    return means | {"skipped": int(rows[-1]["skipped"])}


def faults_of(rows: Sequence[Row], last_step: int, tiles: Callable[[int], list[str]]) -> list[dict[str, Any]]:
    """Describes the first DESCRIBED skipped steps among `rows`, which end with `last_step`."""
    steps = range(last_step - len(rows) + 1, last_step + 1)
    bad = [(step, row) for step, row in zip(steps, rows, strict=True) if row["bad_steps"]]
    return [{"step": step, "terms": culprits(row), "tiles": tiles(step)} for step, row in bad[:DESCRIBED]]


def culprits(row: Row) -> list[str]:
    """Returns what was not finite in a skipped step: loss terms, else the gradient, else the batch statistics."""
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    terms = [name for name in bad if name not in ("loss", "grad_norm") and not name.startswith("share_")]
    return terms or (["gradient"] if "grad_norm" in bad else ["batch statistics"])


def describe(fault: Mapping[str, Any]) -> str:
    return f"step {fault['step']}: {', '.join(fault['terms'])} not finite; tiles {', '.join(fault['tiles'])}"
