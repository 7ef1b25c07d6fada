"""Reads a run, finished or not, from the files of its workdir: config, logs and scores, and what is missing."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from hfd_jax.core.errors import WorkdirError
from hfd_jax.core.logs import read_log
from hfd_jax.core.workdir import Workdir, completed, read_json
from hfd_jax.evaluation.metrics import Scores, scores
from hfd_jax.train.networks import BASELINES, declared_fields, networks_to_train, teacher_spec


@dataclasses.dataclass(frozen=True)
class NetworkScores:
    """A network's scores on the split.

    Attributes:
      title: title of the network.
      step: step of the evaluated checkpoint.
      scores: scores on the split.
    """

    title: str
    step: int
    scores: Scores


@dataclasses.dataclass(frozen=True)
class StoredRun:
    """The contents of a run's workdir.

    Attributes:
      name: trailing part of the folder's path, unique within a report.
      workdir: the run's workdir.
      stored: the config as stored in the workdir.
      config: the stored config, with defaults for fields that it lacks.
      versions: package -> version.
      log, timing: lines of metrics.jsonl and timing.jsonl.
      split: evaluated split of the data set.
      evaluated: network -> scores on the split, from evaluation.json; more may be added.
      remarks: what is missing, one sentence each; more may be added.
    """

    name: str
    workdir: Workdir
    stored: dict[str, Any]
    config: ConfigDict
    versions: dict[str, str]
    log: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    split: str
    evaluated: dict[str, NetworkScores]
    remarks: list[str]

    def networks(self) -> list[str]:
        """Names of all trained or planned networks: teacher, baselines, student, then others."""
        known = ["teacher", *BASELINES, "student"]
        named = {run.name for run in networks_to_train(self.config)} | set(self.evaluated) | self.logged()
        return [name for name in known if name in named] + sorted(named - set(known))

    def needs_teacher(self) -> bool:
        return any(run.needs_teacher for run in networks_to_train(self.config))

    def logged(self) -> set[str]:
        """Names of the networks in the log."""
        return {line["network"] for line in self.log}

    def title(self, network: str) -> str:
        """Returns the title of a network for tables and charts."""
        runs = {run.name: run.title for run in networks_to_train(self.config)}
        if network in self.evaluated:
            return self.evaluated[network].title
        return runs.get(network) or (teacher_spec().title if network == "teacher" else network)


def read_runs(roots: Sequence[str], defaults: dict[str, Any], split: str | None = None) -> list[StoredRun]:
    """Reads workdirs.

    Args:
      roots: paths of the workdirs; no duplicates.
      defaults: the default config, for fields that an older run lacks.
      split: split to report; None for each run's config.eval.split.

    Raises:
      WorkdirError: a folder is missing or contains no logged run, or a workdir is given twice.
    """
    return [read_run(root, name, defaults, split) for root, name in zip(roots, short_names(roots), strict=True)]


def read_run(root: str, name: str, defaults: dict[str, Any], split: str | None) -> StoredRun:
    """Reads one run; arguments and errors as in `read_runs`."""
    if not os.path.isdir(root):
        raise WorkdirError(f"{root}: no such folder; expected the --workdir of a main.py run")
    workdir, remarks = Workdir(root), []
    stored = read_json(workdir.config)
    if not os.path.exists(workdir.metrics):
        raise WorkdirError(f"{workdir.metrics}: missing; no step has been logged in {root} yet")
    config = ConfigDict(completed(completed(stored, declared_fields()), defaults))
    split = split or config.eval.split
    run = StoredRun(
        name=name,
        workdir=workdir,
        stored=stored,
        config=config,
        versions=read_json(workdir.versions) if os.path.exists(workdir.versions) else {},
        log=_read_log(workdir.metrics, remarks),
        timing=_read_log(workdir.timing, remarks),
        split=split,
        evaluated=read_evaluation(workdir, split),
        remarks=remarks,
    )
    remarks += unfinished(run)
    return run


def unfinished(run: StoredRun) -> list[str]:
    """Returns a sentence for each network of the run whose training is unfinished."""
    sentences = []
    for network in networks_to_train(run.config):
        total = run.config.teacher.steps if network.name == "teacher" else run.config.student.steps
        last = max((line["step"] for line in run.log if line["network"] == network.name), default=0)
        if last < total:
            sentences.append(f"{network.title}: {f'{last} of {total} steps' if last else 'not'} trained.")
    return sentences


def _read_log(path: str, remarks: list[str]) -> list[dict[str, Any]]:
    entries, unreadable = read_log(path)
    if unreadable:
        remarks.append(f"Unreadable lines of {os.path.basename(path)}, left out: {unreadable}.")
    return entries


def read_evaluation(workdir: Workdir, split: str) -> dict[str, NetworkScores]:
    """Returns network -> scores on a split; empty if nothing has been evaluated."""
    rows = read_json(workdir.evaluation).get(split, {}) if os.path.exists(workdir.evaluation) else {}
    return {
        name: NetworkScores(
            row["title"],
            row["step"],
            scores(np.array(row["confusion_matrix"]), tuple(row["per_class"]), row["ignored"]),
        )
        for name, row in rows.items()
    }


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns field -> value with dotted field names ("distill.hfd.weight")."""
    fields: dict[str, Any] = {}
    for key, value in config.items():
        fields |= flat(value, f"{prefix}{key}.") if _nested(value) else {f"{prefix}{key}": value}
    return fields


def _nested(value: Any) -> bool:
    return isinstance(value, dict)


def short_names(roots: Sequence[str]) -> list[str]:
    """Returns the shortest trailing parts of the paths that are unique."""
    parts = [os.path.abspath(root).strip(os.sep).split(os.sep) for root in roots]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise WorkdirError(f"--workdir contains the same folder twice: {', '.join(roots)}")
