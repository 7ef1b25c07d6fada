"""Saving and restoring through Orbax; the only module that knows of it.

A checkpoint holds the whole training state and a record (JSON): what the network is, what it was trained on, its score,
and a digest of every array. Orbax itself loads a file with a flipped bit without a word; here every restored array is
held against its digest, and a damaged checkpoint is set aside in favour of the newest good one.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from hfd_jax.state import shape_differences

# Orbax warns unless what follows from read_only is said as well.
_READ_ONLY = {"read_only": True, "create": False, "save_interval_steps": 0}


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or made for something else."""


@dataclasses.dataclass
class _BestStep(policies.PreservationPolicy):
    """Keeps the step with the highest score; ties go to the later one."""

    scores: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        known = [info.step for info in checkpoints if info.step in self.scores]
        best = max(known, key=lambda step: (self.scores[step], step), default=None)
        return [info.step == best for info in checkpoints]


class Checkpoints:
    """The checkpoints of one network: a folder with one folder per step.

    Args:
      directory: made if missing, unless read_only.
      keep: so many of the latest stay, and the best one beside them.
      read_only: for evaluation; nothing is written.

    Raises:
      CheckpointError: read_only, and there is no such folder.
    """

    def __init__(self, directory: str, keep: int = 2, read_only: bool = False):
        self.directory = os.path.abspath(directory)
        if read_only and not os.path.isdir(self.directory):
            raise CheckpointError(f"{directory}: no such folder, so no checkpoint to read")
        self._scores: dict[int, float] = {}
        options = ocp.CheckpointManagerOptions(
            **(_READ_ONLY if read_only else {}),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), _BestStep(self._scores)]),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        for step in self.steps():
            self._remember_score(step)

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, rising."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the highest score; None where no step has one."""
        return max(self._scores, key=lambda step: (self._scores[step], step), default=None)

    def save(self, step: int, state: Any, record: dict[str, Any], score: float | None = None) -> None:
        """Starts writing in the background; the previous save is waited for.

        Args:
          step: names the checkpoint.
          state: a pytree of arrays, one copy.
          record: JSON-ready; kept beside the arrays.
          score: decides which step is the best.
        """
        self._manager.wait_until_finished()
        record = {**record, "step": step, "score": score, "arrays": _fingerprints(state)}
        if score is not None:
            self._scores[step] = score
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        if not self._manager.save(step, args=args, force=True):
            raise CheckpointError(f"{self.directory}: step {step} was not saved; is there a checkpoint of it already?")

    def record(self, step: int) -> dict[str, Any]:
        """The JSON record of a step; CheckpointError where it cannot be read."""
        try:
            return self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        except Exception as error:  # Orbax raises bare exceptions for damaged files
            raise CheckpointError(
                f"{self.directory}/{step}: its record cannot be read ({_first_line(error)})"
            ) from error

    def restore_latest(self, abstract: Any) -> tuple[Any, int] | None:
        """Restores the newest undamaged state.

        Args:
          abstract: pytree of jax.ShapeDtypeStruct, with shardings where they matter.

        Returns:
          (state, step), or None where there is no checkpoint at all.

        Raises:
          CheckpointError: every checkpoint is damaged (nothing is deleted), or they hold another network.
        """
        problems: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                state = self._restore(step, abstract)
            except _DamagedError as error:
                problems[step] = str(error)
                continue
            self._set_aside(problems)
            return state, step
        if problems:
            raise CheckpointError("no good checkpoint is left, nothing was changed: " + "; ".join(problems.values()))
        return None

    def restore_parameters(self, step: int, abstract: Any) -> Any:
        """Restores part of a state: `abstract` has the state's structure with only the wanted leaves.

        Raises:
          CheckpointError: damaged, or of another shape; names file or parameters.
        """
        record = self.record(step)
        self._check_shapes(step, abstract, record, partial=True)
        arguments = ocp.args.PyTreeRestore(
            item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
        )
        manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(**_READ_ONLY),
            item_handlers={"state": ocp.PyTreeCheckpointHandler()},
        )
        try:
            state = manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
        except Exception as error:  # as above
            raise CheckpointError(f"{self.directory}/{step}: cannot be read ({_first_line(error)})") from error
        finally:
            manager.close()
        wrong = _changed_arrays(state, record["arrays"])
        if wrong:
            raise CheckpointError(f"{self.directory}/{step}: damaged, {wrong[0]} does not match its digest")
        return state

    def close(self) -> None:
        """Waits for the save in progress."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _restore(self, step: int, abstract: Any) -> Any:
        try:
            record = self.record(step)
        except CheckpointError as error:
            raise _DamagedError(str(error)) from error
        self._check_shapes(step, abstract, record)
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))[
                "state"
            ]
        except Exception as error:  # as above
            raise _DamagedError(f"{self.directory}/{step}: cannot be read ({_first_line(error)})") from error
        wrong = _changed_arrays(state, record["arrays"])
        if wrong:
            raise _DamagedError(f"{self.directory}/{step}: {wrong[0]} does not match its digest")
        return state

    def _check_shapes(self, step: int, abstract: Any, record: dict[str, Any], partial: bool = False) -> None:
        stored = {
            path: jax.ShapeDtypeStruct(tuple(entry["shape"]), entry["dtype"])
            for path, entry in record["arrays"].items()
        }
        wanted = _by_path(abstract)
        if partial:
            stored = {path: value for path, value in stored.items() if path in wanted}
        problems = shape_differences(wanted, stored)
        if problems:
            more = f" (and {len(problems) - 8} more)" if len(problems) > 8 else ""
            raise CheckpointError(f"{self.directory}/{step} holds another network: " + "; ".join(problems[:8]) + more)

    def _set_aside(self, problems: dict[int, str]) -> None:
        for step, problem in problems.items():
            place = os.path.join(
                os.path.dirname(self.directory), "damaged", f"{os.path.basename(self.directory)}-{step}"
            )
            logging.warning("damaged checkpoint: %s; moved to %s", problem, place)
            if jax.process_index() == 0:
                os.makedirs(os.path.dirname(place), exist_ok=True)
                os.rename(os.path.join(self.directory, str(step)), place)
            self._scores.pop(step, None)
        if problems:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints moved")
            self._manager.reload()

    def _remember_score(self, step: int) -> None:
        try:
            score = self.record(step).get("score")
        except CheckpointError:
            return  # restore_latest deals with it
        if score is not None:
            self._scores[step] = score


class _DamagedError(Exception):
    pass


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _by_path(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _fingerprints(tree: Any) -> dict[str, dict[str, Any]]:
    """path -> shape, dtype and digest of every array."""
    out = {}
    for path, leaf in _by_path(tree).items():
        array = np.asarray(leaf)
        out[path] = {"shape": list(array.shape), "dtype": str(array.dtype), "blake2b": _digest(array)}
    return out


def _digest(array: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()


def _changed_arrays(tree: Any, fingerprints: dict[str, dict[str, Any]]) -> list[str]:
    return [path for path, leaf in _by_path(tree).items() if _digest(np.asarray(leaf)) != fingerprints[path]["blake2b"]]
