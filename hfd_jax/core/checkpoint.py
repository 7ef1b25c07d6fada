"""Saves and restores checkpoints; the only module that imports Orbax.

A checkpoint holds the whole training state and a JSON record: the network, its training data, its score, a digest of
every array and a digest of the record. Orbax loads a file with a flipped bit without an error. This module verifies the
digest of everything it reads; training moves a damaged checkpoint aside and resumes from the newest intact one. It also
reads back every checkpoint that it writes, before an older one is removed.
"""

import concurrent.futures
import contextlib
import functools
import glob
import logging as stdlib_logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.utils import checkpoint_steps

from hfd_jax.core.digests import by_path, digest, fingerprints, record_digest
from hfd_jax.core.errors import CheckpointError, writing
from hfd_jax.core.parallel import same_everywhere, wait_for_all
from hfd_jax.core.trees import listed, shape_differences


class DamagedError(CheckpointError):
    """The files of a checkpoint differ from what was written."""


_TEMPORARY = ".orbax-checkpoint-tmp"  # Orbax ignores folders with this in their name, and removes them when it opens


def check_location(path: str) -> None:
    """Checks that checkpoints can be stored below a folder.

    Raises:
      CheckpointError: Orbax or TensorStore would take the path for another one, or for an address in a cloud store.
    """
    whole = os.path.abspath(path)
    if re.match("[a-z][a-z0-9+.-]*://", path):
        problem = "is a URL; expected a folder of a mounted file system"
    elif re.match("/(gs|s3|az|hf)(/|$)", whole) or "gs:/" in whole + "/":
        problem = "looks like the address of a cloud store; rename the folder, or name it by a symbolic link"
    elif "\\" in whole:
        problem = "contains a backslash, which would be taken for a slash; rename the folder"
    elif whole != whole.encode(errors="replace").decode():
        problem = "is not valid UTF-8; rename the folder"
    else:
        return
    raise CheckpointError(f"{path!r}: checkpoints cannot be stored there: the path {problem}")


class CheckpointReader:
    """Reads the checkpoints of one network; writes nothing.

    Args:
      directory: the network's folder, with one subfolder per step.

    Raises:
      CheckpointError: the folder does not exist, or its path cannot hold checkpoints (`check_location`).
    """

    def __init__(self, directory: str):
        _calm_orbax()
        _glob_literally()
        check_location(directory)
        self.directory = os.path.abspath(directory)
        if not os.path.isdir(self.directory):
            raise CheckpointError(f"{directory}: no such folder; expected a folder of checkpoints")

    def steps(self) -> list[int]:
        """Returns the steps with a finished checkpoint in ascending order."""
        return sorted(checkpoint_steps(self.directory))

    def record(self, step: int) -> dict[str, Any]:
        """Returns the JSON record of a step. Raises DamagedError if it is unreadable or does not match its digest."""
        with self._damage(step, "its record cannot be read"):
            record = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(self._path(step, "record"))
        if not isinstance(record, dict) or record.get("blake2b") != record_digest(record):
            raise DamagedError(f"{self._path(step)}: damaged, its record does not match its digest")
        return record

    def scores(self) -> dict[int, float]:
        """Maps each scored step to its score. Raises DamagedError if a record is unreadable."""
        found = {step: self.record(step).get("score") for step in self.steps()}
        return {step: score for step, score in found.items() if score is not None}

    def choose(self, which: str) -> int:
        """Returns the "latest" or the "best" (highest score) step.

        Raises:
          CheckpointError: there is no checkpoint, or none with a score.
          DamagedError: a record that is needed to find the best step is unreadable.
        """
        scores = self.scores() if which == "best" else {step: step for step in self.steps()}
        if not scores:
            raise CheckpointError(f"{self.directory}: contains no {'scored ' if which == 'best' else ''}checkpoint")
        return max(scores, key=lambda step: (scores[step], step))

    def restore(self, step: int, abstract: Any) -> Any:
        """Restores a state or part of one.

        Args:
          step: step of the checkpoint.
          abstract: pytree of jax.ShapeDtypeStruct with the structure of the state, reduced to the leaves to restore. A
            leaf without a sharding is returned as a NumPy array.

        Raises:
          CheckpointError: the checkpoint holds a different network; the message names parameters and shapes.
          DamagedError: the checkpoint is unreadable, or an array does not match its digest.
        """
        arrays = self.record(step)["arrays"]
        self._check_shapes(step, abstract, arrays)
        args = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        state = self._read(step, args)
        for path, leaf in by_path(state).items():
            if digest(np.asarray(leaf)) != arrays[path]["blake2b"]:
                raise DamagedError(f"{self._path(step)}: damaged, {path} does not match its digest")
        return state

    def verify(self, step: int) -> None:
        """Reads every array of a step. Raises DamagedError if one does not match its digest."""
        arrays = self.record(step)["arrays"]
        state = self._read(step, None)
        digests = sorted(digest(np.asarray(leaf)) for leaf in jax.tree.leaves(state))
        if digests != sorted(entry["blake2b"] for entry in arrays.values()):
            raise DamagedError(f"{self._path(step)}: damaged, an array does not match its digest")

    def _path(self, step: int, *parts: str) -> str:
        return os.path.join(self.directory, str(step), *parts)

    def _read(self, step: int, args: Any) -> Any:
        """Reads with Orbax; without `args`, reads all arrays as NumPy arrays, whatever devices they were saved from."""
        path, reader = self._path(step, "state"), ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        with self._damage(step, "cannot be read"):
            # Also read if `args` name the arrays: what `restore` accepts, `verify` accepts.
            tree = reader.metadata(path).item_metadata.tree
            if args is None:
                plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                args = ocp.args.PyTreeRestore(restore_args=plain)
            return reader.restore(path, args)

    @contextlib.contextmanager
    def _damage(self, step: int, what: str) -> Iterator[None]:
        """Turns any exception of Orbax into a DamagedError, or into a CheckpointError if the system is at fault."""
        try:
            yield
        except Exception as error:
            message = f"{self._path(step)}: {what} ({_first_line(error)})"
            raise (CheckpointError if _is_no_damage(error) else DamagedError)(message) from error

    def _check_shapes(self, step: int, abstract: Any, arrays: dict[str, Any]) -> None:
        wanted = by_path(abstract)
        stored = {k: jax.ShapeDtypeStruct(tuple(v["shape"]), v["dtype"]) for k, v in arrays.items() if k in wanted}
        problems = shape_differences(wanted, stored)
        if problems:
            raise CheckpointError(f"{self._path(step)} holds a different network: {listed(problems)}")


class Checkpoints(CheckpointReader):
    """Reads and writes the checkpoints of one network.

    Args:
      directory: the network's folder; created if missing.
      keep: number of latest checkpoints to keep, in addition to the best one.
    """

    def __init__(self, directory: str, keep: int = 2):
        check_location(directory)
        with writing(directory):
            os.makedirs(directory, exist_ok=True)
        super().__init__(directory)
        self._keep, self._scores, self._unreadable = keep, {}, set()
        for step in self.steps():
            try:
                score = self.record(step).get("score")
            except DamagedError as error:
                logging.warning("damaged checkpoint: %s", error)
                self._unreadable.add(step)
            else:
                self._scores |= {step: score} if score is not None else {}
        # Without a policy Orbax removes nothing: older checkpoints go once the new one has been read back.
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True, async_options=ocp.AsyncOptions(timeout_secs=600)
            ),
        )
        # Orbax would query JAX for preemptions with its own step numbers, from a thread of one process. `interruption`
        # makes this query instead, once per step and in every process.
        self._manager.reached_preemption = lambda step: False
        self._saving: int | None = None
        self._background = concurrent.futures.ThreadPoolExecutor(1)
        self._unread: int | None = None
        self._finishing: concurrent.futures.Future | None = None

    def save(self, step: int, state: Any, record: dict[str, Any], score: float | None = None) -> None:
        """Waits for the previous save, fetches the arrays, and then works in the background.

        There, the arrays are hashed and written, the new checkpoint is read back, and older ones are removed: all but
        the latest, the best, and those with an unreadable record. With several processes, whose saves and reads Orbax
        synchronises, this thread hashes and starts writing, and the next call reads back.

        Args:
          step: names the checkpoint.
          state: pytree of arrays, not replicated. Every process passes its copy; the first process writes.
          record: JSON-serialisable values to store with the arrays.
          score: higher is better; None leaves the step out of the choice of the best one.

        Raises:
          CheckpointError: the previous save failed, for example on a full disk, or what it wrote does not read back.
            Earlier ones are kept. The next `save`, `wait` or `close` reports a failure of this one.
        """
        self.wait()
        # All transfers start together. On the host, Orbax treats jit and pmap alike.
        state = jax.device_get(state)
        if score is not None:
            self._scores[step] = score
        self._saving = step
        if jax.process_count() == 1:
            self._finishing = self._background.submit(self._write_and_finish, step, state, record, score)
            return
        with self._failures():
            self._write(step, state, record, score)

    def restore_latest(self, abstract: Any) -> tuple[Any, int] | None:
        """Restores the newest intact state and moves newer, damaged checkpoints to ../damaged.

        Args:
          abstract: see `restore`.

        Returns:
          (state, step), or None if there is no checkpoint.

        Raises:
          CheckpointError: every checkpoint is damaged (nothing is moved), or they hold a different network.
        """
        problems: dict[int, str] = {}
        found = None
        for step in reversed(self.steps()):
            try:
                found = self.restore(step, abstract), step
                break
            except DamagedError as error:
                problems[step] = str(error)
        # Nothing may be moved before every process has finished reading.
        if not same_everywhere(found[1] if found else -1):
            raise CheckpointError(f"{self.directory}: processes find different checkpoints; is the folder shared?")
        if problems and not found:
            raise CheckpointError("no intact checkpoint is left, nothing was changed: " + "; ".join(problems.values()))
        self._set_aside(problems)
        return found

    def whereabouts(self) -> str:
        """Waits for the save in progress and returns a sentence with the path of the newest checkpoint."""
        self.wait()
        found = self.steps()
        return f"The newest checkpoint is {self._path(found[-1])}" if found else "There is no checkpoint yet"

    def wait(self) -> None:
        """Waits until the save in progress has been read back. Raises CheckpointError if it failed."""
        with self._failures():
            finishing, self._finishing = self._finishing, None
            if finishing:
                finishing.result()
            self._finish()

    def close(self) -> None:
        """Waits as `wait` does and closes Orbax's manager. Raises CheckpointError if the save failed."""
        try:
            self.wait()
        except CheckpointError:
            with contextlib.suppress(Exception):  # repeats the error of the save
                self._manager.close()
            raise
        finally:
            self._background.shutdown()
        self._manager.close()

    def _write_and_finish(self, *save: Any) -> None:
        self._write(*save)
        self._finish()

    def _write(self, step: int, state: Any, record: dict[str, Any], score: float | None) -> None:
        """Hashes host arrays and starts to write them."""
        record = {**record, "step": step, "score": score, "arrays": fingerprints(state)}
        record["blake2b"] = record_digest(record)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        if not self._manager.save(step, args=args, force=True):
            raise FileExistsError("a checkpoint of this step exists already")
        self._unread = step

    def _finish(self) -> None:
        """Waits for the save in progress, reads back what it wrote and removes older checkpoints."""
        step, self._unread = self._unread, None
        self._manager.wait_until_finished()
        if step is None:
            return
        self.verify(step)
        if jax.process_index() == 0:
            self._remove_old()

    def _remove_old(self) -> None:
        found = self.steps()
        scored = [other for other in found if other in self._scores]
        best = max(scored, key=lambda other: (self._scores[other], other), default=None)
        for other in set(found[: -self._keep]) - {best} - self._unreadable:
            # Renamed first: a run that is killed here leaves nothing that looks like a damaged checkpoint.
            removed = f"{self._path(other)}{_TEMPORARY}"
            os.rename(self._path(other), removed)
            shutil.rmtree(removed, ignore_errors=True)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax raises bare exceptions here too
            kept = ", ".join(str(step) for step in self.steps() if step != self._saving) or "none"
            what = "does not read back" if isinstance(error, CheckpointError) else "could not be written"
            raise CheckpointError(
                f"{self._path(self._saving)} {what} ({_first_line(error)}); checkpoints kept: {kept}"
            ) from error

    def _set_aside(self, problems: dict[int, str]) -> None:
        folder = os.path.join(os.path.dirname(self.directory), "damaged")
        for step, problem in problems.items():
            place = os.path.join(folder, f"{os.path.basename(self.directory)}-{step}-{time.time_ns()}")
            logging.warning("damaged checkpoint: %s; moved to %s", problem, place)
            if jax.process_index() == 0:
                os.makedirs(folder, exist_ok=True)
                os.rename(self._path(step), place)
            self._scores.pop(step, None)
        wait_for_all("damaged checkpoints moved")
        if problems:
            self._manager.reload()


@functools.cache
def _calm_orbax() -> None:
    """Silences messages that Orbax prints in addition to raising an exception.

    Each thread of a failed save logs its traceback, and after a failed read or write the remaining threads report a
    closed event loop. Each restore of a checkpoint without Orbax's own metadata item warns that the item is missing.
    """
    previous_hook = sys.unraisablehook

    def skip_closed_event_loop(unraisable):
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            previous_hook(unraisable)

    def worth_reading(entry: stdlib_logging.LogRecord) -> bool:
        if os.sep + "orbax" + os.sep in entry.pathname:
            entry.exc_info = None
            return not str(entry.msg).startswith("Metadata file does not exist")
        return True

    sys.unraisablehook = skip_closed_event_loop
    logging.get_absl_logger().addFilter(worth_reading)


@functools.cache
def _glob_literally() -> None:
    """Makes epath take a folder's name literally when it lists the folder.

    Orbax lists folders with `Path.glob`, and epath takes the whole path as a pattern: below `run[1]` it would find none
    of the files that Orbax has just written, below `run*` also those of other runs, and the checkpoint would be lost.
    """

    def glob_below(self: Any, pattern: str) -> Iterator[Any]:
        below = glob.glob(os.path.join(glob.escape(os.fspath(self)), pattern))
        return (type(self)(path) for path in below)

    type(ocp.checkpoint_manager.epath.Path("/")).glob = glob_below


def _is_no_damage(error: Exception) -> bool:
    """Whether memory, permissions, an unreachable file server or a lost process caused the error: it may work again."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError)):
        return True
    return any(
        status in str(error)
        for status in ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "PERMISSION_DENIED", "sync_global", "gloo")
    )


def _first_line(error: Exception) -> str:
    """The first line of a message, without what TensorStore adds for its developers, and without its middle if long."""
    line = re.sub(r" \[(source locations|tensorstore_spec)=.*", "", (str(error).splitlines() or [""])[0])
    return f"{type(error).__name__}: {line if len(line) <= 200 else f'{line[:95]} ... {line[-95:]}'}"
