"""A sweep: variants of one config, each with several seeds; which runs it is made of, and carrying them out.

A sweep file (configs/sweeps/) says

    CONFIG = "configs/quickstart.py"      what the rows vary; --config names another one
    REFERENCE = "SAR-only"                the row that differences are taken to
    ROWS = {"SAR-only": {"distill.method": ()}, "HFD": {}, ...}       row -> fields that differ
    FLOOR = "without distillation"        optional: where the gap to the teacher begins; else the reference
    AXIS = "data.label_share"             optional: rows that share a name up to " @" are points of one curve over it,
                                          REFERENCE and FLOOR are names of curves

Every row is one student (or, with {"stage": "teacher"}, the teacher). Rows that agree in all that a teacher's training
depends on share the teachers, one per seed. A run's folder is named after the fields in which it differs from the
config, so that sweeps of the same config in the same folder share the runs that they have in common.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import operator
import os
import re
import runpy
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from hfd_jax import assembly, train
from hfd_jax.config_flags import unknown_field
from hfd_jax.errors import STOPPED_EXIT_CODE, ConfigError, StoppedError, UserError
from hfd_jax.reporting import duration
from hfd_jax.workdir import Workdir, check_claim, read_json, write_json

# Fields that the training of a teacher does not read.
_STUDENTS_ALONE = ("student.", "distill.", "data.labelled_per_batch")
_POINT = " @"
_stop: Any = None  # in a worker: an event, set when no further run is to begin


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
      name: of the file.
      config: path of the config that the rows vary.
      reference: row, or curve, that differences are taken to.
      rows: name -> {field: value}.
      floor: row or curve at which the gap to the teacher begins.
      axis: field that a curve is drawn over, or "".
    """

    name: str
    config: str
    reference: str
    rows: Mapping[str, Mapping[str, Any]]
    floor: str
    axis: str = ""

    @property
    def teacher(self) -> str:
        """The row or curve that is the ceiling; "" where no row is a teacher."""
        return next((curve(row) for row, fields in self.rows.items() if fields.get("stage") == "teacher"), "")


def curve(row: str) -> str:
    """ "HFD" of "HFD @ 10 %"."""
    return row.split(_POINT)[0]


def at_same_point(name: str, row: str) -> str:
    """The point of the curve `name` that lies where `row` lies; `name` itself where `row` is no point of a curve."""
    return name + row[len(curve(row)) :]


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run of a sweep, in a workdir of its own.

    Attributes:
      row: whose result it is; "" for a teacher that is no row.
      seed, config, root: of the run; root is its workdir.
      network: what is trained, "teacher" or "student".
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
    def title(self) -> str:
        return f"{self.row or 'teacher'}, seed {self.seed}"


def read_sweep(path: str) -> Sweep:
    """ConfigError where the file is missing, or is none."""
    if not os.path.isfile(path):
        raise ConfigError(f"--sweep={path}: no such file; configs/sweeps/ holds those that come with the project")
    found = runpy.run_path(path)
    missing = [name for name in ("CONFIG", "REFERENCE", "ROWS") if name not in found]
    if missing:
        raise ConfigError(f"{path}: {missing[0]} is missing; a sweep file sets CONFIG, REFERENCE and ROWS")
    rows, axis, floor = found["ROWS"], found.get("AXIS", ""), found.get("FLOOR", found["REFERENCE"])
    known = list(dict.fromkeys(curve(row) if axis else row for row in rows))
    for field, value in (("REFERENCE", found["REFERENCE"]), ("FLOOR", floor)):
        if value not in known:
            raise ConfigError(
                f"{path}: {field} is {value!r}; the {'curves' if axis else 'rows'} are {', '.join(known)}"
            )
    name = os.path.splitext(os.path.basename(path))[0]
    return Sweep(name, found["CONFIG"], found["REFERENCE"], rows, floor, axis)


def plan(sweep: Sweep, base: ConfigDict, seeds: Sequence[int], root: str) -> list[Job]:
    """The runs of a sweep in an order in which each finds its teacher; ConfigError for a field that does not exist,
    rows that are the same run, and values on the axis that have no place there."""
    teachers: dict[str, Job] = {}
    students: dict[str, Job] = {}
    for row, overrides in sweep.rows.items():
        for seed in seeds:
            config = varied(base, overrides, f"row {row!r} of sweep {sweep.name}")
            config.seed, config.baselines, config.eval.panels = seed, (), 0
            _check_place(sweep, config, row)
            is_teacher = config.stage == "teacher"
            if is_teacher or assembly.student_run(config).needs_teacher:
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


def _refuse_twins(sweep: Sweep, known: Job | None, row: str) -> None:
    if known and known.row:
        raise ConfigError(f"sweep {sweep.name}: rows {known.row!r} and {row!r} are the same run, {known.root}")


def _check_place(sweep: Sweep, config: ConfigDict, row: str) -> None:
    if config.eval.checkpoint != "latest":
        raise ConfigError(
            f"config.eval.checkpoint is {config.eval.checkpoint!r}: rows are compared after the same "
            "number of steps; expected 'latest'"
        )
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
    """A copy of `base` with fields ("part.field") set; ConfigError where one does not exist or has another type."""
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
    mine = {k: v for k, v in overrides.items() if k != "stage" and not k.startswith(_STUDENTS_ALONE)}
    config = varied(base, mine, "teacher")
    config.seed, config.baselines, config.stage, config.eval.panels = seed, (), "teacher", 0
    return Job("", seed, config, _folder(root, "teachers", mine, base, seed), "teacher")


def _folder(root: str, kind: str, overrides: Mapping[str, Any], base: ConfigDict, seed: int) -> str:
    """Named after the overrides that change something, whatever the row is called."""
    changed = {field: value for field, value in overrides.items() if value != value_at(base, field)}
    words = [f"{field} {'none' if value == () else value}" for field, value in sorted(changed.items())]
    name = re.sub(r"[^A-Za-z0-9.+-]+", "_", " ".join(words)).strip("_")
    return os.path.join(root, kind, name or "base", f"seed_{seed}")


def value_at(config: ConfigDict, field: str) -> Any:
    """The value of "part.field"."""
    return functools.reduce(operator.getitem, field.split("."), config)


def is_finished(job: Job) -> bool:
    """Whether its network has been evaluated at its last step.

    Raises:
      WorkdirError: the folder holds a run of another config.
    """
    workdir = Workdir(job.root)
    check_claim(workdir, job.config)
    if not os.path.exists(workdir.evaluation):
        return False
    row = read_json(workdir.evaluation).get(job.config.eval.split, {}).get(job.network)
    return row is not None and row["step"] == job.steps


def cost_file(job: Job) -> str:
    """Where `run` notes how long the run took: {"seconds": number, or null where it was interrupted}."""
    return os.path.join(job.root, "cost.json")


def run(job: Job) -> None:
    """Trains and evaluates; goes on where an earlier call was interrupted."""
    resumed, start = os.path.exists(Workdir(job.root).config), time.monotonic()
    train.run(job.config, job.root)
    if not os.path.exists(cost_file(job)):  # else another split is evaluated now
        write_json(cost_file(job), {"seconds": None if resumed else time.monotonic() - start})
    jax.clear_caches()


def run_all(jobs: Sequence[Job], at_once: int, say: Callable[[str], None] = print) -> list[tuple[Job, UserError]]:
    """Runs what is not finished, teachers before students, `at_once` at a time.

    A run that fails for a reason of its own (it diverges, say) does not stop the others.

    Returns:
      Those that failed, with the reason.
    """
    waiting = [job for job in jobs if not is_finished(job)]
    say(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them finished")
    failed: list[tuple[Job, UserError]] = []
    start, done = time.monotonic(), 0
    for stage in ("teacher", "student"):
        group = [job for job in waiting if job.network == stage]
        for job, error in (_one_by_one if at_once == 1 else _side_by_side)(group, at_once, say):
            done += 1
            left = (time.monotonic() - start) / done * (len(waiting) - done)
            outcome = f"failed: {error}" if error else "done"
            say(f"--- {done}/{len(waiting)}: {job.title}: {outcome}, {duration(left)} left")
            failed += [(job, error)] if error else []
    return failed


def _one_by_one(jobs: Sequence[Job], at_once: int, say: Callable[[str], None]) -> Iterator[tuple[Job, Any]]:
    for job in jobs:
        say(f"--- {job.title} ({job.root})")
        yield job, _attempt(job)


def _side_by_side(jobs: Sequence[Job], at_once: int, say: Callable[[str], None]) -> Iterator[tuple[Job, Any]]:
    """Each worker process has a share of the devices of its own: GPUs in turn, or the CPU's cores."""
    context = multiprocessing.get_context("spawn")
    numbers, stop = context.Queue(), context.Event()
    for number in range(at_once):
        numbers.put(number)
    say(f"{at_once} at once; each writes to output.txt in its workdir")
    with concurrent.futures.ProcessPoolExecutor(at_once, context, _begin_worker, (numbers, at_once, stop)) as pool:
        futures = {pool.submit(_attempt_quietly, job): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise StoppedError("a run was stopped; the same command continues") from error
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _attempt(job: Job) -> UserError | None:
    try:
        run(job)
    except UserError as error:
        return error
    except Exception as error:  # noqa: BLE001 - out of memory, say: smaller networks still have a chance
        traceback.print_exc()
        return UserError(f"{type(error).__name__}: {error}".splitlines()[0])
    return None


def _attempt_quietly(job: Job) -> UserError | None:
    os.makedirs(job.root, exist_ok=True)
    with open(os.path.join(job.root, "output.txt"), "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            outcome = None if _to_stop() else _attempt(job)
            if not _to_stop():
                return outcome
        except (StoppedError, KeyboardInterrupt) as message:
            print(message, flush=True)
        os._exit(STOPPED_EXIT_CODE)  # or the pool would hand it the next run


def _to_stop() -> bool:
    """Whether the tool has been interrupted or killed: a signal that comes while a run is evaluated goes unheard."""
    return _stop.is_set() or not multiprocessing.parent_process().is_alive()


def _begin_worker(numbers: Any, count: int, stop: Any) -> None:
    """Before JAX looks for devices: this worker sees its own GPU, or its own cores. It ends with its parent."""
    global _stop  # a pool has no other way to hand an event over
    _stop = stop
    threading.Thread(target=_follow_parent, daemon=True).start()
    flags.FLAGS.mark_as_parsed()  # grain insists on it
    number = numbers.get()
    os.environ["CUDA_VISIBLE_DEVICES"] = _own_gpu(number)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number % len(cores) :: count])


def _follow_parent() -> None:
    """A parent that is killed takes no leave of its workers: each saves and stops, as if asked itself."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _own_gpu(number: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    choices = [str(number)] if visible is None else visible.split(",")
    return choices[number % len(choices)]
