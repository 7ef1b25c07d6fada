"""What a run survives: signals, and kills at any moment."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfd_jax.interruption import EXIT_CODE
from tests.conftest import ROOT, python_environment, run_python
from tests.runs import arguments, digests, log_of

STEPS = 40
# One line of the log and one checkpoint every few steps, and neither divides the other.
FLAGS = (
    f"--config.teacher.steps={STEPS}",
    f"--config.student.steps={STEPS}",
    "--config.train.checkpoint_every=7",
    "--config.train.log_every=5",
    "--config.train.eval_every=0",
    "--config.data.crop=32",
    "--config.data.batch_size=4",
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


def wait_for_step(process, network, step):
    """Reads the output until `network` has reported `step` or later; returns what was read."""
    text = ""
    for line in process.stdout:
        text += line
        words = line.split()
        if len(words) > 1 and words[0] == network and "/" in words[1] and int(words[1].split("/")[0]) >= step:
            return text
    raise AssertionError(f"ended before step {step} of {network}:\n{text}")


def same(one, other):
    for network in ("teacher", "student"):
        assert digests(one, network, STEPS) == digests(other, network, STEPS)
        assert log_of(one, network) == log_of(other, network)
    scores = [json.loads(Path(workdir, "evaluation.json").read_text()) for workdir in (one, other)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(("number", "network"), [(signal.SIGTERM, "teacher"), (signal.SIGINT, "student")])
def test_signal_saves_and_the_same_command_ends_alike(undisturbed, scenes_dir, tmp_path, number, network):
    workdir = tmp_path / "run"
    process = start(workdir, scenes_dir)
    wait_for_step(process, network, 5)
    process.send_signal(number)
    rest = process.communicate(timeout=300)[0]
    assert process.returncode == EXIT_CODE == 75, rest
    assert f"{number.name}: stops after this step" in rest and f"of {network}, which is saved" in rest
    assert "Traceback" not in rest
    stopped = int(rest.split("stopped after step ")[1].split()[0])
    assert 5 <= stopped < STEPS
    assert f"steps {stopped} to {STEPS}" in run_python(*command(workdir, scenes_dir)).stdout, "not one step is lost"
    same(workdir, undisturbed)


def kill_and_resume(undisturbed, data_dir, workdir, kills, seed):
    """Kills a run `kills` times at random moments, starting it again each time; compares the end with `undisturbed`."""
    rng = random.Random(seed)
    survived = 0
    while survived < kills:
        process = start(workdir, data_dir)
        moments = [("teacher", 1), ("teacher", 5), ("teacher", STEPS // 2), ("student", 1), ("student", STEPS // 2)]
        network, step = rng.choice(moments)
        try:
            wait_for_step(process, network, step)
        except AssertionError:  # that moment has passed in an earlier life
            if process.wait() == 0:
                shutil.rmtree(workdir)  # it reached the end: begin anew
                continue
        time.sleep(rng.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        survived += process.returncode == -signal.SIGKILL
    run_python(*command(workdir, data_dir))
    same(workdir, undisturbed)


def test_three_kills(undisturbed, scenes_dir, tmp_path):
    kill_and_resume(undisturbed, scenes_dir, tmp_path / "run", 3, seed=1)


@pytest.mark.slow
def test_twenty_kills(undisturbed, scenes_dir, tmp_path):
    kill_and_resume(undisturbed, scenes_dir, tmp_path / "run", 20, seed=int(os.environ.get("SEED", "2")))
