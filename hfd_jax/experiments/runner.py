"""Runs a sweep's unfinished jobs, one after the other or in parallel processes."""

import concurrent.futures
import glob
import importlib.util
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax
from absl import flags

from hfd_jax.core import startup
from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.errors import STOPPED_EXIT_CODE, StoppedError, UserError
from hfd_jax.core.logs import duration
from hfd_jax.core.workdir import Workdir, check_claim, read_json
from hfd_jax.experiments.sweep import Job
from hfd_jax.train import stages
from hfd_jax.train.networks import declared_fields

_stop: Any = None  # in a worker: an event; once set, no further run starts


def is_finished(job: Job) -> bool:
    """Returns whether the job's network is trained and the checkpoint that counts has been evaluated.

    Raises:
      WorkdirError: the folder contains a run with a different config.
    """
    workdir = Workdir(job.root)
    check_claim(workdir, job.config, declared_fields())
    if not os.path.exists(workdir.evaluation):
        return False
    row = read_json(workdir.evaluation).get(job.config.eval.split, {}).get(job.network)
    if row is None or job.which == "latest":
        return row is not None and row["step"] == job.steps
    saved = CheckpointReader(workdir.checkpoints(job.network))
    return max(saved.steps(), default=0) == job.steps and row["step"] == saved.choose(job.which)


def run(job: Job) -> None:
    """Trains and evaluates the job's network; resumes an interrupted run."""
    stages.train(job.config, job.root)
    jax.clear_caches()


def run_all(jobs: Sequence[Job], at_once: int, say: Callable[[str], None] = print) -> list[tuple[Job, UserError]]:
    """Runs the unfinished jobs, teachers before students, `at_once` at a time.

    A run that fails on its own, for example because it diverges, does not stop the others.

    Returns:
      The failed jobs with their errors.

    Raises:
      UserError: `at_once` exceeds the number of GPUs, or a worker process died, for example out of memory.
      StoppedError: the process received SIGTERM; the same call resumes.
    """
    if at_once > 1 and at_once > (gpus := _gpus()) > 0:
        raise UserError(f"--at_once is {at_once}; every run needs its own GPU: expected at most {gpus}")
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
    """Runs jobs in worker processes, each with its own GPU or its own share of the CPU cores."""
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
            if stop.is_set():
                raise StoppedError("a run was stopped; the same command continues") from error
            begun = [job.root for job in jobs if os.path.exists(_output(job)) and not is_finished(job)]
            raise UserError(
                f"a worker process died (out of memory? try a smaller --at_once) in one of: {', '.join(begun)}; its "
                "output.txt may contain details. The same command resumes the sweep"
            ) from error
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _attempt(job: Job) -> UserError | None:
    try:
        run(job)
    except UserError as error:
        return error
    except Exception as error:  # noqa: BLE001 - for example out of memory: smaller networks may still fit
        traceback.print_exc()
        return UserError(f"{type(error).__name__}: {error}".splitlines()[0])
    return None


def _attempt_quietly(job: Job) -> UserError | None:
    os.makedirs(job.root, exist_ok=True)
    with open(_output(job), "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            outcome = None if _to_stop() else _attempt(job)
            if not _to_stop():
                return outcome
        except (StoppedError, KeyboardInterrupt) as message:
            print(message, flush=True)
            _stop.set()  # distinguishes a stopped worker from one that died
        os._exit(STOPPED_EXIT_CODE)  # otherwise the pool would assign it the next run


def _output(job: Job) -> str:
    return os.path.join(job.root, "output.txt")


def _to_stop() -> bool:
    """Whether the tool was interrupted or killed: evaluation does not react to signals."""
    return _stop.is_set() or not multiprocessing.parent_process().is_alive()


def _begin_worker(numbers: Any, count: int, stop: Any) -> None:
    """Restricts this worker to its own GPU or cores before JAX looks for devices; it stops when its parent does."""
    global _stop  # a pool cannot pass an event to its tasks
    _stop = stop
    startup.protect_streams()
    threading.Thread(target=_follow_parent, daemon=True).start()
    flags.FLAGS.mark_as_parsed()  # required by grain
    number = numbers.get()
    os.environ["CUDA_VISIBLE_DEVICES"] = _own_gpu(number)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number % len(cores) :: count])


def _follow_parent() -> None:
    """Sends SIGTERM to this worker once its parent has ended or was told to stop, so that it saves and stops."""
    while multiprocessing.parent_process().is_alive() and not _stop.wait(1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _gpus() -> int:
    """Number of NVIDIA GPUs available to JAX, counted without initialising JAX; 0 for JAX on the CPU."""
    if importlib.util.find_spec("jax_plugins") is None:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(glob.glob("/dev/nvidia[0-9]*") if visible is None else visible.split(","))


def _own_gpu(number: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    choices = [str(number)] if visible is None else visible.split(",")
    return choices[number % len(choices)]
