"""A sweep: variants of one config, each with several seeds; which runs it is made of, and carrying them out.

A sweep file (configs/sweeps/) says

    CONFIG = "configs/quickstart.py"      what the rows vary; --config names another one
    REFERENCE = "SAR-only"                the row that differences are taken to
    ROWS = {"SAR-only": {"distill.method": ()}, "HFD": {}, ...}       row -> fields that differ
    AXIS = "data.label_share"             optional: rows that share a name up to " @" are points of one curve over it

Every row is one student (or, with {"stage": "teacher"}, the teacher). Rows that agree in all that a teacher's training
depends on share the teachers, one per seed.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import re
import runpy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from hfd_jax import assembly, train
from hfd_jax.config_flags import unknown_field
from hfd_jax.errors import ConfigError, UserError
from hfd_jax.reporting import duration
from hfd_jax.workdir import Workdir, check_claim, read_json, write_json

# Fields that the training of a teacher does not read.
_STUDENTS_ALONE = ("student.", "distill.", "data.labelled_per_batch")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
      name: of the file.
      config: path of the config that the rows vary.
      reference: name of a row.
      rows: name -> {field: value}.
      axis: field that a curve is drawn over, or "".
    """

    name: str
    config: str
    reference: str
    rows: Mapping[str, Mapping[str, Any]]
    axis: str = ""


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
    if found["REFERENCE"] not in found["ROWS"]:
        raise ConfigError(f"{path}: REFERENCE is {found['REFERENCE']!r}; the rows are {', '.join(found['ROWS'])}")
    name = os.path.splitext(os.path.basename(path))[0]
    return Sweep(name, found["CONFIG"], found["REFERENCE"], found["ROWS"], found.get("AXIS", ""))


def plan(sweep: Sweep, base: ConfigDict, seeds: Sequence[int], root: str) -> list[Job]:
    """The runs of a sweep in an order in which each finds its teacher; ConfigError for a field that does not exist."""
    teachers: dict[str, Job] = {}
    students: list[Job] = []
    for row, overrides in sweep.rows.items():
        for seed in seeds:
            config = varied(base, overrides, f"row {row!r} of sweep {sweep.name}")
            config.seed, config.baselines, config.eval.panels = seed, (), 0
            is_teacher = config.stage == "teacher"
            if is_teacher or assembly.student_run(config).needs_teacher:
                job = _teacher_job(base, overrides, seed, root)
                known = teachers.setdefault(job.root, job)
                config.teacher.checkpoint = Workdir(job.root).checkpoints("teacher")
            if is_teacher:
                teachers[job.root] = dataclasses.replace(known, row=row)
                continue
            config.stage = "student"
            students.append(Job(row, seed, config, os.path.join(root, "rows", _slug(row), f"seed_{seed}"), "student"))
    folders = [job.root for job in students]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"sweep {sweep.name}: two rows would share a folder; name them apart in letters and digits")
    return [*teachers.values(), *students]


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
    name = _slug(" ".join(f"{field}={value}" for field, value in sorted(mine.items()))) or "base"
    return Job("", seed, config, os.path.join(root, "teachers", name, f"seed_{seed}"), "teacher")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.+-]+", "_", text.lower()).strip("_")


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
    numbers = context.Queue()
    for number in range(at_once):
        numbers.put(number)
    say(f"{at_once} at once; each writes to output.txt in its workdir")
    with concurrent.futures.ProcessPoolExecutor(at_once, context, _take_share, (numbers, at_once)) as pool:
        futures = {pool.submit(_attempt_quietly, job): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _attempt(job: Job) -> UserError | None:
    try:
        run(job)
    except UserError as error:
        return error
    return None


def _attempt_quietly(job: Job) -> UserError | None:
    os.makedirs(job.root, exist_ok=True)
    with open(os.path.join(job.root, "output.txt"), "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        return _attempt(job)


def _take_share(numbers: Any, count: int) -> None:
    """Before JAX looks for devices: this worker sees its own GPU, or its own cores."""
    flags.FLAGS.mark_as_parsed()  # grain insists on it
    number = numbers.get()
    os.environ["CUDA_VISIBLE_DEVICES"] = _own_gpu(number)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number % len(cores) :: count])


def _own_gpu(number: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    choices = visible.split(",") if visible else [str(number)]
    return choices[number % len(choices)]
