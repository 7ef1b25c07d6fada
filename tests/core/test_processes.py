"""A run on two processes connected over loopback: same numbers, also when killed, stopped and resumed."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from hfd_jax.core.errors import STOPPED_EXIT_CODE
from hfd_jax.core.workdir import Workdir, sole_run
from tests.conftest import FAST_COMPILE, ROOT, python_environment, run_python
from tests.runs import COARSE_FLAGS, arguments, digests, evaluation, rows_of

STEPS = 30
FLAGS = (
    f"--config.teacher.steps={STEPS}",
    f"--config.student.steps={STEPS}",
    "--config.train.checkpoint_every=7",
    "--config.train.log_every=5",
    "--config.train.eval_every=0",
    "--config.data.crop=32",
    "--config.distill.hfd.taps=('C3','A')",
    "--config.data.batch_size=4",
    *COARSE_FLAGS,
    "--config.eval.panels=0",
)


class Pair:
    """The same command as two processes with one device each."""

    def __init__(self, *command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.processes, self.output, self._threads = [], ["", ""], []
        self._line = threading.Condition()
        for index in range(2):
            ids = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
            process = subprocess.Popen(
                [sys.executable, *map(str, command), "--config.distributed=True"],
                cwd=ROOT,
                env=python_environment(**ids),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.processes.append(process)
            self._threads.append(threading.Thread(target=self._read, args=(index,)))
            self._threads[-1].start()

    def _read(self, index):
        for line in self.processes[index].stdout:
            self.output[index] += line
            with self._line:
                self._line.notify_all()

    def wait_for(self, network, step):
        """Waits until the first process has logged this step of a network, or a later one."""

        def reached():
            found = re.findall(rf" {network}  (\d+)/{STEPS}", self.output[0])
            return any(int(number) >= step for number in found) or self.processes[0].poll() is not None

        with self._line:
            assert self._line.wait_for(reached, timeout=300), self.output[0]
        assert self.processes[0].poll() is None, self.output[0]

    def kill(self, *indices):
        for index in indices:
            self.processes[index].send_signal(signal.SIGKILL)

    def end(self):
        """Waits for both processes and returns their exit codes."""
        codes = [process.wait(timeout=300) for process in self.processes]
        for thread, process in zip(self._threads, self.processes, strict=True):
            thread.join()
            process.stdout.close()
        return codes


def on_one_process(command):
    """Runs the command as one process with two devices; returns its output."""
    devices = f"--xla_force_host_platform_device_count=2 {FAST_COMPILE}"
    return run_python(*command, env={"XLA_FLAGS": devices}).stdout


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, scenes, scenes_dir):
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    on_one_process(arguments(workdir, scenes_dir, *FLAGS, baselines=()))
    return workdir


def same(one, other):
    for network in ("teacher", "student"):
        assert digests(one, network, STEPS) == digests(other, network, STEPS)
        assert rows_of(one, network) == rows_of(other, network)
    assert evaluation(one) == evaluation(other)


def test_killed_stopped_and_resumed_on_one_process(undisturbed, scenes_dir, tmp_path):
    """Kills two processes, restarts and stops them around the end of stage 1, finishes on one; results are bit-equal."""
    workdir = tmp_path / "run"
    command = arguments(workdir, scenes_dir, *FLAGS, baselines=())
    first = Pair(*command)
    first.wait_for("teacher", 10)
    first.kill(1)
    first.kill(0)  # as a scheduler does when one process dies; the slow test leaves the other to notice it
    assert first.end() == [-signal.SIGKILL] * 2

    second = Pair(*command)
    second.wait_for("teacher", STEPS)  # next: its last save, its evaluation, compiling the student
    second.processes[1].send_signal(signal.SIGTERM)
    assert second.end() == [STOPPED_EXIT_CODE] * 2, second.output[0]
    assert "teacher (EO): 6 labelled tiles, steps 7 to 30" in second.output[0]
    stopped = re.search(r"stopped after step (\d+) of (\w+), which is saved", second.output[0])
    assert stopped[0] in second.output[1], "both agree"

    first_step = stopped[1] if stopped[2] == "student" else "0"
    assert f"HFD student (SAR): 6 labelled + 18 unlabelled tiles, steps {first_step} to" in on_one_process(command)
    same(workdir, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "victim"), [("jit", 1), ("pmap", 0)])
def test_two_processes_to_the_end(scenes_dir, tmp_path, kind, victim):
    """A process notices the loss of its peer within two minutes; two processes resume; one gives the same numbers."""
    workdir, alone = tmp_path / "two", tmp_path / "one"
    flags = (*FLAGS, f"--config.parallel={kind}")
    command = arguments(workdir, scenes_dir, *flags, baselines=())
    first = Pair(*command)
    first.wait_for("teacher", 10)
    first.kill(victim)
    start = time.monotonic()
    codes = first.end()
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, STOPPED_EXIT_CODE)
    assert time.monotonic() - start < 120
    second = Pair(*command)
    second.wait_for("student", 5)
    second.processes[victim].send_signal(signal.SIGINT)
    assert second.end() == [STOPPED_EXIT_CODE] * 2, second.output[0]
    assert "steps 7 to 30" in second.output[0] and "of student, which is saved" in second.output[0]
    third = Pair(*command)
    assert third.end() == [0, 0], third.output[0]
    on_one_process(arguments(alone, scenes_dir, *flags, baselines=()))
    same(workdir, alone)


@pytest.mark.slow
def test_a_process_that_stands_still_for_ten_minutes(undisturbed, scenes_dir, tmp_path):
    """The other process gives up after about a minute; the same command continues and ends with the same numbers."""
    workdir = tmp_path / "run"
    command = arguments(workdir, scenes_dir, *FLAGS, baselines=())
    pair = Pair(*command)
    pair.wait_for("teacher", 10)
    pair.processes[1].send_signal(signal.SIGSTOP)
    start = time.monotonic()
    assert pair.processes[0].wait(timeout=120) not in (0, STOPPED_EXIT_CODE)
    time.sleep(max(0, 600 - (time.monotonic() - start)))
    pair.processes[1].send_signal(signal.SIGCONT)
    assert pair.end()[1] not in (0, STOPPED_EXIT_CODE)
    on_one_process(command)
    same(workdir, undisturbed)


def test_refused_by_one_process_ends_both(scenes_dir, tmp_path):
    """If the workdir is in use, the first process reports it and exits; the second does not wait forever."""
    workdir = tmp_path / "run"
    with sole_run(Workdir(str(workdir))):
        pair = Pair(*arguments(workdir, scenes_dir, *FLAGS, baselines=()))
        codes = pair.end()
    assert codes[0] == 1 and codes[1] != 0
    assert "error: " in pair.output[0] and "in use by another run" in pair.output[0]


def test_distributed_without_other_processes_names_what_is_missing(tmp_path):
    done = run_python(
        "main.py",
        "--config=configs/scenes.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.distributed=True",
        check=False,
    )
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    assert "error: config.distributed is True, but no other processes were found" in done.stderr
    assert "JAX_COORDINATOR_ADDRESS" in done.stderr and "Traceback" not in done.stderr
