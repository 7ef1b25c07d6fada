"""Writes metrics to the console, to metrics.jsonl and, if TensorFlow is installed, to TensorBoard."""

import contextlib
import errno
import functools
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from hfd_jax.core.errors import writing


def say(text: str) -> None:
    """Prints a line on the first process."""
    if jax.process_index() == 0:
        print(text, flush=True)


def duration(seconds: float) -> str:
    """Formats seconds as "42 s", "3:05" or "2:03:05"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Progress:
    """Measures steps per second and the time left.

    Args:
      total: last step.
      start: step at which the run starts or resumes.
      skip: number of first steps left out of the measurement, because they compile.
    """

    def __init__(self, total: int, start: int = 0, skip: int = 1):
        self._total, self._first, self._since = total, start + skip, time.monotonic()

    def tick(self, done: int) -> None:
        """Call after every step with the number of finished steps."""
        if done <= self._first:
            self._since = time.monotonic()

    def rate(self, done: int) -> float | None:
        """Returns steps per second, including pauses between steps; None before the first measured step."""
        return (done - self._first) / max(time.monotonic() - self._since, 1e-9) if done > self._first else None

    def text(self, done: int) -> str:
        rate = self.rate(done)
        if rate is None:
            return f"{done}/{self._total}"
        return f"{done}/{self._total}  {rate:.1f}/s  {duration((self._total - done) / rate)} left"


class MetricsLog:
    """Appends JSON objects with "network", "step" and numbers, one per line. Only the first process writes.

    Lines that cannot be written, for example on a full disk, do not end a run: they are written with the next line.

    Args:
      path: file to append to.
    """

    def __init__(self, path: str):
        self._path = path
        self._waiting: list[str] = []

    def rewind(self, network: str, step: int) -> None:
        """Drops the lines of `network` after `step`; a run that resumes at `step` writes them again."""
        if jax.process_index() or not os.path.exists(self._path):
            return
        with open(self._path, encoding="utf-8", errors="replace") as file:
            lines = [line for line in file if _keep(line, network, step)]
        temporary = self._path + ".tmp"
        with writing(self._path):
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(lines)
            os.replace(temporary, self._path)

    def write(self, network: str, step: int, values: Mapping[str, Any]) -> None:
        if jax.process_index():
            return
        first = not self._waiting
        self._waiting.append(json.dumps({"network": network, "step": step, **values}) + "\n")
        try:
            self._flush()
        except OSError as error:
            if first:
                logging.warning(
                    "%s: cannot be written (%s); its lines wait for the next try", self._path, error.strerror
                )

    def close(self) -> None:
        """Writes the lines that wait. Raises WorkdirError if they still cannot be written."""
        if self._waiting:
            with writing(self._path):
                self._flush()

    def _flush(self) -> None:
        """Appends the lines that wait, all or none. Raises OSError."""
        with open(self._path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            content = "".join(self._waiting).encode()
            try:
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(end)
                raise
        self._waiting.clear()


def read_log(path: str) -> tuple[list[dict[str, Any]], int]:
    """Returns the entries of a `MetricsLog` file (none if it does not exist) and the number of invalid lines."""
    if not os.path.exists(path):
        return [], 0
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.readlines()
    entries = [entry for line in lines if (entry := _entry(line)) is not None]
    return entries, len(lines) - len(entries)


def _keep(line: str, network: str, step: int) -> bool:
    entry = _entry(line)
    return entry is not None and (entry["network"] != network or entry["step"] <= step)


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None  # a killed run may leave an incomplete line
    return entry if isinstance(entry, dict) and {"network", "step"} <= set(entry) else None


def rows_of(metrics: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Returns the metrics of several steps as Python floats; waits for the device."""
    return [{key: float(value) for key, value in row.items()} for row in jax.device_get(list(metrics))]


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Formats lines of cells as a text table: the first column left-aligned, the others right-aligned."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(w) if k else cell.ljust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def short(values: Mapping[str, float]) -> str:
    """Formats the loss and its terms (the values with a "share_" entry) as "loss 1.234  ce 0.812 ..."."""
    names = ["loss", *(name for name in values if f"share_{name}" in values)]
    return "  ".join(f"{name} {values[name]:.3f}" for name in names if name in values)


class Summaries:
    """Writes TensorBoard summaries through clu; does nothing but warn once if they cannot be written.

    That is so if clu or TensorFlow is missing, and after an error such as a full disk: metrics.jsonl has all numbers.

    Args:
      directory: folder for the event files.
    """

    def __init__(self, directory: str):
        self._writer = None
        if jax.process_index() == 0 and tensorboard_available():
            # TensorFlow computes nothing here; this silences its message about oneDNN.
            os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
            from clu import metric_writers  # noqa: PLC0415 - imports TensorFlow: slow and optional

            with self._harmless():
                self._writer = metric_writers.SummaryWriter(directory)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        with self._harmless():
            if self._writer:
                self._writer.write_scalars(step, values)

    def images(self, step: int, draw: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Writes the images that `draw` returns (name -> [H, W, 3] uint8); calls it only if summaries are written."""
        images = {name: image[None] for name, image in draw().items()} if self._writer else {}
        with self._harmless():
            if self._writer:
                self._writer.write_images(step, images)

    def close(self) -> None:
        with self._harmless():
            if self._writer:
                self._writer.close()

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - TensorFlow's errors share no base class
            self._writer = None
            logging.warning("TensorBoard summaries are off: %s", str(error).splitlines()[0][:200])


@functools.cache
def tensorboard_available() -> bool:
    """Whether summaries can be written; warns once if not."""
    missing = [name for name in ("clu", "tensorflow", "tensorboard") if importlib.util.find_spec(name) is None]
    if missing:
        logging.warning(
            "TensorBoard summaries are off: %s not installed; metrics.jsonl has all numbers", ", ".join(missing)
        )
    return not missing
