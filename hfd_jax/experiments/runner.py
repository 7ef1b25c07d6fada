"""Carrying out the runs of a sweep: what is not finished yet, one after the other or side by side."""

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

from hfd_jax.core.errors import STOPPED_EXIT_CODE, StoppedError, UserError
from hfd_jax.core.logs import duration
from hfd_jax.core.workdir import Workdir, check_claim, read_json
from hfd_jax.experiments.sweep import Job
from hfd_jax.train import stages

_stop: Any = None  # in a worker: an event, set when no further run is to begin


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


def run(job: Job) -> None:
    """Trains and evaluates; goes on where an earlier call was interrupted."""
    stages.train(job.config, job.root)
    jax.clear_caches()


def run_all(jobs: Sequence[Job], at_once: int, say: Callable[[str], None] = print) -> list[tuple[Job, UserError]]:
    """Runs what is not finished, teachers before students, `at_once` at a time.

    A run that fails for a reason of its own (it diverges, say) does not stop the others.

    Returns:
      Those that failed, with the reason.

    Raises:
      UserError: more at once than there are GPUs; a worker process died (out of memory, say).
      StoppedError: after SIGTERM; the same call continues.
    """
    if at_once > 1 and at_once > (gpus := _gpus()) > 0:
        raise UserError(f"--at_once is {at_once}, and every run takes a GPU of its own: there are {gpus}")
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
            if stop.is_set():
                raise StoppedError("a run was stopped; the same command continues") from error
            begun = [job.root for job in jobs if os.path.exists(_output(job)) and not is_finished(job)]
            raise UserError(
                f"a worker process died (out of memory? fewer --at_once need less) in one of: {', '.join(begun)}; its "
                "output.txt may say more. The same command continues"
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
    except Exception as error:  # noqa: BLE001 - out of memory, say: smaller networks still have a chance
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
            _stop.set()  # tells the tool that this worker has not just died
        os._exit(STOPPED_EXIT_CODE)  # or the pool would hand it the next run


def _output(job: Job) -> str:
    return os.path.join(job.root, "output.txt")


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


def _gpus() -> int:
    """How many NVIDIA GPUs JAX could use; counted without JAX, which would take them. 0 where it is JAX for the CPU."""
    if importlib.util.find_spec("jax_plugins") is None:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(glob.glob("/dev/nvidia[0-9]*") if visible is None else visible.split(","))


def _own_gpu(number: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    choices = [str(number)] if visible is None else visible.split(",")
    return choices[number % len(choices)]
