"""A run survives signals, and kills at any moment."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.errors import STOPPED_EXIT_CODE
from tests.conftest import ROOT, python_environment, run_python
from tests.runs import COARSE_FLAGS, arguments, digests, rows_of

STEPS = 40
# The intervals of log lines and checkpoints do not divide each other.
FLAGS = (
    f"--config.teacher.steps={STEPS}",
    f"--config.student.steps={STEPS}",
    "--config.train.checkpoint_every=7",
    "--config.train.log_every=5",
    "--config.train.eval_every=14",
    "--config.data.crop=32",
    "--config.distill.hfd.taps=('C3','A')",
    "--config.data.batch_size=4",
    *COARSE_FLAGS,
)


def command(workdir, data_dir):
    return arguments(workdir, data_dir, *FLAGS, baselines=())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, scenes, scenes_dir):
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    run_python(*command(workdir, scenes_dir))
    return workdir


def start(workdir, data_dir):
    return subprocess.Popen(
        [sys.executable, *map(str, command(workdir, data_dir))],
        cwd=ROOT,
        env=python_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def position(network, step):
    """Steps since the beginning of the run, over both stages."""
    return ("teacher", "student").index(network) * STEPS + step


def wait_for(process, wanted):
    """Reads the output until the run has reported the position `wanted` or a later one."""
    text = ""
    for line in process.stdout:
        text += line
        found = re.match(r" *(teacher|student)  (\d+)/", line)
        if found and position(found[1], int(found[2])) >= wanted:
            return
    raise AssertionError(f"ended with {process.wait()} before position {wanted}:\n{text}")


def same(one, other):
    for network in ("teacher", "student"):
        assert digests(one, network, STEPS) == digests(other, network, STEPS)
        assert rows_of(one, network) == rows_of(other, network)
    scores = [json.loads(Path(workdir, "evaluation.json").read_text()) for workdir in (one, other)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(("number", "network"), [(signal.SIGTERM, "teacher"), (signal.SIGINT, "student")])
def test_signal_saves_and_the_same_command_ends_alike(undisturbed, scenes_dir, tmp_path, number, network):
    workdir = tmp_path / "run"
    process = start(workdir, scenes_dir)
    wait_for(process, position(network, 5))
    process.send_signal(number)
    rest = process.communicate(timeout=300)[0]
    assert process.returncode == STOPPED_EXIT_CODE == 75, rest
    assert f"{number.name}: stops after this step" in rest and f"of {network}, which is saved" in rest
    assert "Traceback" not in rest
    stopped = int(rest.split("stopped after step ")[1].split()[0])
    assert 5 <= stopped < STEPS
    assert f"steps {stopped} to {STEPS}" in run_python(*command(workdir, scenes_dir)).stdout, "not one step is lost"
    same(workdir, undisturbed)


def test_signal_outside_training_ends_at_once_with_the_same_code(undisturbed, scenes_dir, tmp_path):
    """During evaluation there is nothing to save."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    process = start(workdir, scenes_dir)
    for line in process.stdout:
        if line.startswith("student") or "before it teaches" in line:
            break
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=300)[0]
    assert process.returncode == STOPPED_EXIT_CODE and "SIGTERM: stopped; the same command continues the run" in rest
    same(workdir, undisturbed)


def kill_while_saving(process, workdir):
    """Kills the process as soon as an incomplete checkpoint appears."""
    while not list(Path(workdir).glob("checkpoints/*/*-tmp")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def kill_and_resume(undisturbed, data_dir, workdir, kills, seed):
    """Kills a run during a save, then at random, increasing steps; compares the final result with `undisturbed`."""
    rng = random.Random(seed)
    process = start(workdir, data_dir)
    kill_while_saving(process, workdir)
    for wanted in sorted(rng.randrange(1, 2 * STEPS - 25) for _ in range(kills - 1)):
        process = start(workdir, data_dir)
        wait_for(process, wanted)
        time.sleep(rng.choice((0.1, 0.3, 3.0)) * rng.random())  # also in validation, and between the stages
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was still running"
    run_python(*command(workdir, data_dir))
    same(workdir, undisturbed)


def test_two_kills(undisturbed, scenes_dir, tmp_path):
    kill_and_resume(undisturbed, scenes_dir, tmp_path / "run", 2, seed=1)


def kill_at_random(data_dir, workdir, rng, seconds):
    """Starts a run again and again and kills it within `seconds`, until it ends by itself; returns the number of kills."""
    for kills in range(1000):
        kept = {network: max(steps_of(workdir, network), default=0) for network in ("teacher", "student")}
        output = workdir.with_suffix(".txt")
        with output.open("w+") as file:
            piped = rng.random() < 0.5
            process = subprocess.Popen(
                [sys.executable, *map(str, command(workdir, data_dir))],
                cwd=ROOT,
                env=python_environment(),
                stdout=subprocess.PIPE if piped else file,
                stderr=subprocess.STDOUT,
                text=True,
            )
            # In its first second, somewhere, or as soon as a stage is trained.
            moment = rng.choice(("first", "any", "any", "last"))
            try:
                if moment == "last" and piped and kept["student"] < STEPS:
                    wait_for(process, position("teacher" if kept["teacher"] < STEPS else "student", STEPS))
                    time.sleep(rng.random())
                else:
                    process.communicate(timeout=rng.uniform(0, 1 if moment == "first" else seconds))
            except subprocess.TimeoutExpired:
                pass
            process.send_signal(signal.SIGKILL)
            process.communicate()
        for network, step in kept.items():
            assert max(steps_of(workdir, network), default=0) >= step, "a finished checkpoint is lost"
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, output.read_text()
            return kills
    raise AssertionError("it never ended")


def steps_of(workdir, network):
    folder = workdir / "checkpoints" / network
    return CheckpointReader(str(folder)).steps() if folder.is_dir() else []


@pytest.mark.slow
def test_hundred_kills(undisturbed, scenes_dir, tmp_path):
    rng, kills, start = random.Random(int(os.environ.get("SEED", "2"))), 0, time.monotonic()
    run_python(
        *command(tmp_path / "whole", scenes_dir)
    )  # with all programs compiled; half of it, so that most are killed
    seconds = (time.monotonic() - start) / 2
    for number in itertools.count():
        workdir = tmp_path / f"run_{number}"
        kills += kill_at_random(scenes_dir, workdir, rng, seconds)
        same(workdir, undisturbed)
        print(f"{number + 1} runs, {kills} kills", flush=True)
        if kills >= 100:
            return
