"""Sweeps: variants of one config with several seeds each, and the runs that they require.

A sweep file (configs/sweeps/) defines

    CONFIG = "configs/scenes.py"          base config; --config overrides it
    REFERENCE = "SAR-only"                the row that others are compared with
    ROWS = {"SAR-only": {"distill.method": ()}, "HFD": {}, ...}       row -> fields that differ
    FLOOR = "without distillation"        optional: lower end of the gap to the teacher; default: REFERENCE
    AXIS = "data.label_share"             optional: rows with the same name before " @" form a curve over this field;
                                          REFERENCE and FLOOR then name curves
    CHOICES = {"either": ("SAR-only", "HFD")}   optional: further rows (or curves) that take, per seed, the row that is
                                          better on the validation split; REFERENCE and FLOOR may name one, too

Every row is one student or, with {"stage": "teacher"}, the teacher. Rows that agree in every field that the teacher's
training depends on share one teacher per seed. A run's folder is named after the fields that differ from the base
config, so sweeps of the same config in the same folder reuse each other's runs.
"""

import dataclasses
import functools
import hashlib
import operator
import os
import re
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from hfd_jax.core.errors import ConfigError, nearest
from hfd_jax.core.options import options_of
from hfd_jax.core.workdir import STUDENT_ONLY, Workdir
from hfd_jax.models.registry import ARCHITECTURES, default_options
from hfd_jax.train.config_flags import unknown_field
from hfd_jax.train.networks import student_spec

# Fields that the sweep sets for every run.
_OWN = ("seed", "baselines", "teacher.checkpoint", "teacher.which", "eval.checkpoint", "eval.panels")
_LONGEST_NAME = 200  # bytes of a folder's name; file systems take 255
_POINT = " @"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The contents of a sweep file.

    Attributes:
      name: name of the file without its suffix.
      config: path of the config that the rows vary.
      reference: row, curve or choice that the others are compared with.
      rows: name -> {field: value}.
      floor: row, curve or choice at the lower end of the gap to the teacher.
      axis: field that a curve is drawn over, or "".
      choices: name -> rows or curves to choose from on the validation split.
    """

    name: str
    config: str
    reference: str
    rows: Mapping[str, Mapping[str, Any]]
    floor: str
    axis: str = ""
    choices: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    @property
    def teacher(self) -> str:
        """The row or curve of the teacher, the upper end of the gap; "" if no row trains a teacher."""
        return next((curve(row) for row, fields in self.rows.items() if fields.get("stage") == "teacher"), "")


def curve(row: str) -> str:
    """Returns the name of a row's curve: "HFD" for "HFD @ 10 %"."""
    return row.split(_POINT)[0]


def point(row: str) -> str:
    """Returns the part of a row's name that names its point: "10 %" for "HFD @ 10 %", "" without one."""
    return row[len(curve(row)) :].removeprefix(_POINT).strip()


def at_same_point(name: str, row: str) -> str:
    """Returns the point of curve `name` at the value of `row`, or `name` if `row` is not a point of a curve."""
    return name + row[len(curve(row)) :]


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run of a sweep, in a workdir of its own.

    Attributes:
      row: the row that the result belongs to; "" for a teacher that is not a row itself.
      seed, config: seed and config of the run.
      root: workdir of the run.
      network: the network to train, "teacher" or "student".
    """

    row: str
    seed: int
    config: ConfigDict
    root: str
    network: str

    @property
    def steps(self) -> int:
        return self.config[self.network].steps

    @property
    def which(self) -> str:
        """The checkpoint that is evaluated, "latest" or "best"."""
        return self.config.teacher.which if self.network == "teacher" else self.config.eval.checkpoint

    @property
    def title(self) -> str:
        return f"{self.row or 'teacher'}, seed {self.seed}"


def read_sweep(path: str) -> Sweep:
    """Reads a sweep file.

    Raises:
      ConfigError: the file is missing or invalid.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"--sweep={path}: no such file; the sweeps of this project are in configs/sweeps/")
    try:
        found = runpy.run_path(path)
    except Exception as error:
        raise ConfigError(f"{path} does not run: {type(error).__name__}: {error}") from error
    missing = [name for name in ("CONFIG", "REFERENCE", "ROWS") if name not in found]
    if missing:
        raise ConfigError(f"{path}: {missing[0]} is missing; a sweep file sets CONFIG, REFERENCE and ROWS")
    rows, axis, floor = found["ROWS"], found.get("AXIS", ""), found.get("FLOOR", found["REFERENCE"])
    if not isinstance(rows, dict) or not all(isinstance(fields, dict) for fields in rows.values()):
        raise ConfigError(f'{path}: ROWS is {rows!r}; expected {{"name of a row": {{"part.field": value, ...}}, ...}}')
    known = list(dict.fromkeys(curve(row) if axis else row for row in rows))
    choices = _checked_choices(path, found.get("CHOICES", {}), known)
    for field, value in (("REFERENCE", found["REFERENCE"]), ("FLOOR", floor)):
        if value not in (*known, *choices):
            also = f"; the choices are {', '.join(choices)}" if choices else ""
            kind = "curves" if axis else "rows"
            raise ConfigError(f"{path}: {field} is {value!r}; the {kind} are {', '.join(known)}{also}")
    name = os.path.splitext(os.path.basename(path))[0]
    return Sweep(name, found["CONFIG"], found["REFERENCE"], rows, floor, axis, choices)


def _checked_choices(path: str, choices: Any, known: Sequence[str]) -> Mapping[str, Sequence[str]]:
    if not isinstance(choices, dict):
        raise ConfigError(f'{path}: CHOICES is {choices!r}; expected {{"name": ("one row", "another row"), ...}}')
    for name, candidates in choices.items():
        if name in known:
            raise ConfigError(f"{path}: CHOICES has {name!r}, which is the name of a row or curve; expected a new name")
        if not candidates or not isinstance(candidates, tuple | list) or not set(candidates) <= set(known):
            raise ConfigError(
                f"{path}: CHOICES[{name!r}] is {candidates!r}; expected some of the rows or curves {', '.join(known)}"
            )
    return choices


def reduced(sweep: Sweep, names: Sequence[str]) -> Sweep:
    """The sweep with only some of its rows or curves, by name, and the reference and the floor at the same points.

    A choice stands for the rows that it chooses from.

    Raises:
      ConfigError: there is no row or curve of a name.
    """
    points = [at_same_point(choice, row) for choice in sweep.choices for row in sweep.rows]
    known = list(dict.fromkeys([*sweep.rows, *map(curve, sweep.rows), *sweep.choices, *points]))
    for name in names:
        if name not in known:
            raise ConfigError(f"--rows={name!r}: sweep {sweep.name} has no such row or curve; {nearest(name, known)}")

    def chosen_from(name: str) -> Sequence[str]:
        return (
            [at_same_point(row, name) for row in sweep.choices[curve(name)]] if curve(name) in sweep.choices else [name]
        )

    listed = {candidate for name in names for candidate in chosen_from(name)}
    wanted = {row for row in sweep.rows if {row, curve(row)} & listed}
    compared = [*chosen_from(sweep.reference), *chosen_from(sweep.floor)]
    wanted |= {at_same_point(name, row) for row in wanted for name in compared}
    rows = {row: fields for row, fields in sweep.rows.items() if row in wanted}
    return dataclasses.replace(sweep, rows=rows)


def plan(sweep: Sweep, base: ConfigDict, seeds: Sequence[int], root: str) -> list[Job]:
    """Lists the runs of a sweep, teachers first.

    Raises:
      ConfigError: a field does not exist or is set by the sweep itself, two rows are the same run, or a value cannot
        be placed on the axis.
    """
    if base.teacher.checkpoint:
        raise ConfigError(
            f"config.teacher.checkpoint is {base.teacher.checkpoint!r}: a sweep trains a teacher of its own per seed"
        )
    teachers: dict[str, Job] = {}
    students: dict[str, Job] = {}
    for row, overrides in sweep.rows.items():
        for seed in seeds:
            _check_own_fields(sweep, row, overrides)
            config = varied(base, overrides, f"row {row!r} of sweep {sweep.name}")
            config.seed, config.baselines, config.eval.panels = seed, (), 0
            _check_place(sweep, config, row)
            is_teacher = config.stage == "teacher"
            if is_teacher or student_spec(config).needs_teacher:
                job = _teacher_job(base, overrides, seed, root)
                known = teachers.setdefault(job.root, job)
                config.teacher.checkpoint = Workdir(job.root).checkpoints("teacher")
            if is_teacher:
                _refuse_twins(sweep, known, row)
                teachers[job.root] = dataclasses.replace(known, row=row)
                continue
            config.stage = "student"
            job = Job(row, seed, config, _folder(root, "students", overrides, base, seed), "student")
            _refuse_twins(sweep, students.get(job.root), row)
            students[job.root] = job
    return [*teachers.values(), *students.values()]


def _check_own_fields(sweep: Sweep, row: str, overrides: Mapping[str, Any]) -> None:
    for field in overrides:
        if field in _OWN:
            raise ConfigError(f"row {row!r} of sweep {sweep.name}: config.{field} is set by the sweep itself")
    if overrides.get("stage", "teacher") != "teacher":
        raise ConfigError(
            f"row {row!r} of sweep {sweep.name}: stage is {overrides['stage']!r}; expected 'teacher', or no "
            "stage for a student"
        )


def _refuse_twins(sweep: Sweep, known: Job | None, row: str) -> None:
    if known and known.row:
        raise ConfigError(f"sweep {sweep.name}: rows {known.row!r} and {row!r} are the same run, {known.root}")


def _check_place(sweep: Sweep, config: ConfigDict, row: str) -> None:
    if not sweep.axis:
        return
    problem = unknown_field(sweep.axis, config)
    if problem:
        raise ConfigError(f"AXIS of sweep {sweep.name}: {problem}")
    place = value_at(config, sweep.axis)
    if isinstance(place, bool) or not isinstance(place, int | float) or place <= 0:
        raise ConfigError(
            f"row {row!r} of sweep {sweep.name}: config.{sweep.axis} is {place!r}, and its axis is "
            "logarithmic: expected a number above 0"
        )


def varied(base: ConfigDict, overrides: Mapping[str, Any], where: str) -> ConfigDict:
    """Copies `base` and sets fields ("part.field").

    Raises:
      ConfigError: a field does not exist or the value has another type.
    """
    config = base.copy_and_resolve_references()
    for field, value in overrides.items():
        problem = unknown_field(field, config)
        if problem:
            raise ConfigError(f"{where}: {problem}")
        try:
            config.update_from_flattened_dict({field: value})
        except TypeError as error:
            raise ConfigError(f"{where}: config.{field} = {value!r}: {error}") from error
    return config


def _teacher_job(base: ConfigDict, overrides: Mapping[str, Any], seed: int, root: str) -> Job:
    architecture = ARCHITECTURES.get(overrides.get("model.architecture", base.model.architecture))
    unread = default_options().keys() - (options_of(architecture).keys() if architecture else default_options().keys())
    others = ("stage", *(f"model.{name}" for name in unread))
    relevant = {k: v for k, v in overrides.items() if k not in others and not k.startswith(STUDENT_ONLY)}
    config = varied(base, relevant, "teacher")
    config.seed, config.baselines, config.stage, config.eval.panels = seed, (), "teacher", 0
    return Job("", seed, config, _folder(root, "teachers", relevant, base, seed), "teacher")


def _folder(root: str, kind: str, overrides: Mapping[str, Any], base: ConfigDict, seed: int) -> str:
    """A run's folder, named after the overrides that change the base config and independent of the row's name."""
    changed = {field: value for field, value in overrides.items() if value != value_at(base, field)}
    words = [f"{field} {'none' if value == () else value}" for field, value in sorted(changed.items())]
    name = re.sub(r"[^A-Za-z0-9.+-]+", "_", " ".join(words)).strip("_")
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 17]}_{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
    return os.path.join(root, kind, name or "base", f"seed_{seed}")


def value_at(config: ConfigDict, field: str) -> Any:
    """Returns the value of a nested field, "part.field"."""
    return functools.reduce(operator.getitem, field.split("."), config)
