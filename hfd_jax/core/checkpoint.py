"""Saving and restoring through Orbax; the only module that knows of it.

A checkpoint holds the whole training state and a record (JSON): what the network is, what it was trained on, its score,
and digests of every array and of itself. Orbax loads a file with a flipped bit without a word; here whatever is read is
held against its digest, and a damaged checkpoint is set aside in favour of the newest good one.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging as stdlib_logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint.utils import checkpoint_steps

from hfd_jax.core.errors import CheckpointError
from hfd_jax.core.parallel import same_everywhere, wait_for_all
from hfd_jax.core.trees import listed, shape_differences


class DamagedError(CheckpointError):
    """A checkpoint's files are not what was written."""


@dataclasses.dataclass
class _BestStep(policies.PreservationPolicy):
    """Keeps the step with the highest score, ties go to the later one; and those whose score a damaged record hides."""

    scores: dict[int, float]
    unreadable: set[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        known = [info.step for info in checkpoints if info.step in self.scores]
        best = max(known, key=lambda step: (self.scores[step], step), default=None)
        return [info.step == best or info.step in self.unreadable for info in checkpoints]


class CheckpointReader:
    """Reads the checkpoints in a folder, one folder per step; writes nothing.

    Args:
      directory: of one network.

    Raises:
      CheckpointError: there is no such folder.
    """

    def __init__(self, directory: str):
        _calm_orbax()
        self.directory = os.path.abspath(directory)
        if not os.path.isdir(self.directory):
            raise CheckpointError(f"{directory}: no such folder, so no checkpoint to read")

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, rising."""
        return sorted(checkpoint_steps(self.directory))

    def record(self, step: int) -> dict[str, Any]:
        """The JSON record of a step; DamagedError where it cannot be read or is not what was written."""
        with self._damage(step, "its record cannot be read"):
            record = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(self._path(step, "record"))
        if not isinstance(record, dict) or record.get("blake2b") != _record_digest(record):
            raise DamagedError(f"{self._path(step)}: damaged, its record does not match its digest")
        return record

    def scores(self) -> dict[int, float]:
        """step -> score, of the steps that have one; DamagedError where a record cannot be read."""
        found = {step: self.record(step).get("score") for step in self.steps()}
        return {step: score for step, score in found.items() if score is not None}

    def choose(self, which: str) -> int:
        """The "latest" or the "best" (highest score) step; CheckpointError where there is none, or none can be told."""
        scores = self.scores() if which == "best" else {step: step for step in self.steps()}
        if not scores:
            raise CheckpointError(f"{self.directory}: no {'scored ' if which == 'best' else ''}checkpoint in it")
        return max(scores, key=lambda step: (scores[step], step))

    def restore(self, step: int, abstract: Any) -> Any:
        """Restores a state or a part of it.

        Args:
          step: to read.
          abstract: pytree of jax.ShapeDtypeStruct with the state's structure and only the wanted leaves; a leaf without
            sharding comes back as a NumPy array.

        Raises:
          CheckpointError: the checkpoint holds another network; names the parameters and shapes.
          DamagedError: it cannot be read, or an array does not match its digest.
        """
        arrays = self.record(step)["arrays"]
        self._check_shapes(step, abstract, arrays)
        args = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        state = self._read(step, args)
        for path, leaf in _by_path(state).items():
            if _digest(np.asarray(leaf)) != arrays[path]["blake2b"]:
                raise DamagedError(f"{self._path(step)}: damaged, {path} does not match its digest")
        return state

    def verify(self, step: int) -> None:
        """Reads every array of a step and holds it against its digest; DamagedError where one does not match."""
        arrays = self.record(step)["arrays"]
        state = self._read(step, None)
        digests = sorted(_digest(np.asarray(leaf)) for leaf in jax.tree.leaves(state))
        if digests != sorted(entry["blake2b"] for entry in arrays.values()):
            raise DamagedError(f"{self._path(step)}: damaged, an array does not match its digest")

    def _path(self, step: int, *parts: str) -> str:
        return os.path.join(self.directory, str(step), *parts)

    def _read(self, step: int, args: Any) -> Any:
        """Through Orbax; without `args` everything, as NumPy arrays: saved on which devices does not matter then."""
        path, reader = self._path(step, "state"), ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        with self._damage(step, "cannot be read"):
            if args is None:
                tree = reader.metadata(path).item_metadata.tree
                plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                args = ocp.args.PyTreeRestore(restore_args=plain)
            return reader.restore(path, args)

    @contextlib.contextmanager
    def _damage(self, step: int, what: str) -> Iterator[None]:
        """Orbax raises bare exceptions for damaged files: DamagedError, unless it is the machine that failed."""
        try:
            yield
        except Exception as error:
            message = f"{self._path(step)}: {what} ({_first_line(error)})"
            raise (CheckpointError if _is_no_damage(error) else DamagedError)(message) from error

    def _check_shapes(self, step: int, abstract: Any, arrays: dict[str, Any]) -> None:
        wanted = _by_path(abstract)
        stored = {k: jax.ShapeDtypeStruct(tuple(v["shape"]), v["dtype"]) for k, v in arrays.items() if k in wanted}
        problems = shape_differences(wanted, stored)
        if problems:
            raise CheckpointError(f"{self._path(step)} holds another network: {listed(problems)}")


class Checkpoints(CheckpointReader):
    """Also writes them.

    Args:
      directory: made if missing.
      keep: so many of the latest stay, and the best one beside them.
    """

    def __init__(self, directory: str, keep: int = 2):
        os.makedirs(directory, exist_ok=True)
        super().__init__(directory)
        self._scores, unreadable = {}, set()
        for step in self.steps():
            try:
                score = self.record(step).get("score")
            except DamagedError as error:
                logging.warning("damaged checkpoint: %s", error)
                unreadable.add(step)
            else:
                self._scores |= {step: score} if score is not None else {}
        policy = policies.AnyPreservationPolicy([policies.LatestN(keep), _BestStep(self._scores, unreadable)])
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(timeout_secs=600),
            ),
        )
        # It would ask JAX whether a preemption is due with step numbers of its own, from a thread of one process:
        # `interruption` asks, once per step and in all processes alike.
        self._manager.reached_preemption = lambda step: False
        self._saving: int | None = None

    def save(self, step: int, state: Any, record: dict[str, Any], score: float | None = None) -> None:
        """Starts writing in the background; the previous save is waited for.

        Args:
          step: names the checkpoint.
          state: a pytree of arrays, one copy; with several processes each has it, and the first one writes.
          record: JSON-ready; kept beside the arrays.
          score: decides which step is the best.

        Raises:
          CheckpointError: this save or the previous one failed, for example on a full disk; earlier checkpoints stay.
        """
        self.wait()
        # On the host: the digests need the numbers, and Orbax takes the arrays of every kind of parallelism alike.
        state = jax.tree.map(np.asarray, state)
        record = {**record, "step": step, "score": score, "arrays": _fingerprints(state)}
        record["blake2b"] = _record_digest(record)
        if score is not None:
            self._scores[step] = score
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        self._saving = step
        with self._failures():
            saved = self._manager.save(step, args=args, force=True)
        if not saved:
            raise CheckpointError(f"{self._path(step)} was not saved; is there a checkpoint of this step already?")

    def restore_latest(self, abstract: Any) -> tuple[Any, int] | None:
        """Restores the newest undamaged state; damaged newer ones are moved to ../damaged.

        Args:
          abstract: as `restore` takes it.

        Returns:
          (state, step), or None where there is no checkpoint at all.

        Raises:
          CheckpointError: every checkpoint is damaged (nothing is moved), or they hold another network.
        """
        problems: dict[int, str] = {}
        found = None
        for step in reversed(self.steps()):
            try:
                found = self.restore(step, abstract), step
                break
            except DamagedError as error:
                problems[step] = str(error)
        # Only now that every process has read what it wanted may anything be moved.
        if not same_everywhere(found[1] if found else -1):
            raise CheckpointError(f"{self.directory}: not all processes find the same checkpoint in it; is it shared?")
        if problems and not found:
            raise CheckpointError("no good checkpoint is left, nothing was changed: " + "; ".join(problems.values()))
        self._set_aside(problems)
        return found

    def whereabouts(self) -> str:
        """Says where the newest checkpoint is, after the save in progress."""
        self.wait()
        found = self.steps()
        return f"The newest checkpoint is {self._path(found[-1])}" if found else "There is no checkpoint yet"

    def wait(self) -> None:
        """Waits for the save in progress; CheckpointError where it failed."""
        with self._failures():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and lets go of the folder."""
        try:
            self.wait()
        except CheckpointError:
            with contextlib.suppress(Exception):  # the same error once more
                self._manager.close()
            raise
        self._manager.close()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # as above
            kept = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"{self._path(self._saving)} could not be written ({_first_line(error)}); checkpoints that stay: {kept}"
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
    """Silences what Orbax prints beside the exceptions that it raises.

    Every thread of a failed save logs its traceback, and after a failed read or write the others complain about a
    closed event loop. Every restore of a checkpoint without Orbax's own metadata item warns that it is missing.
    """
    show = sys.unraisablehook

    def show_others(unraisable):
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            show(unraisable)

    def worth_reading(entry: stdlib_logging.LogRecord) -> bool:
        if os.sep + "orbax" + os.sep in entry.pathname:
            entry.exc_info = None
            return not str(entry.msg).startswith("Metadata file does not exist")
        return True

    sys.unraisablehook = show_others
    logging.get_absl_logger().addFilter(worth_reading)


def _is_no_damage(error: Exception) -> bool:
    """Memory, permissions, a file server that is away: trying again later may do."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError)):
        return True
    return any(
        status in str(error) for status in ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "PERMISSION_DENIED", "sync_global")
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:600]}"


def _by_path(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _fingerprints(tree: Any) -> dict[str, dict[str, Any]]:
    """path -> shape, dtype and digest of every NumPy array."""
    out = {}
    for path, leaf in _by_path(tree).items():
        out[path] = {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "blake2b": _digest(leaf)}
    return out


def _record_digest(record: dict[str, Any]) -> str:
    """Over everything but the digest itself, as JSON."""
    text = json.dumps({key: value for key, value in record.items() if key != "blake2b"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digest(array: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()
