"""Small complete runs for tests: configs/scenes.py with fewer tiles, channels and steps."""

import json
import os
from pathlib import Path

from hfd_jax.core.checkpoint import CheckpointReader
from tests.conftest import run_python

STEPS = 6
# Without the fine decoder, a step compiles in two thirds of the time; for tests of something else than the network.
COARSE = {"model.stride": 4, "model.detail_channels": ()}
COARSE_FLAGS = tuple(f"--config.{field}={value}" for field, value in COARSE.items())
NETWORKS = ("teacher", "sar_only", "teacher_init", "student")


def arguments(workdir, data_dir, *more, baselines=("sar_only", "teacher_init")):
    small = {
        "data.dir": data_dir,
        "data.batch_size": 8,
        "data.label_share": 0.25,
        "data.scenes.train": 24,
        "data.scenes.validation": 6,
        "data.scenes.test": 10,
        "model.width": 4,
        "optim.learning_rate": 0.003,  # with that config's rate, six steps would amplify rounding errors
        "teacher.steps": STEPS,
        "student.steps": STEPS,
        "train.checkpoint_every": 3,
        "train.eval_every": 3,
        "train.log_every": 2,
        "eval.panels": 0,  # its network programs take seconds to compile
        "baselines": str(baselines).replace(" ", ""),
    }
    flags = [f"--config.{field}={value}" for field, value in small.items()]
    return ["main.py", "--config=configs/scenes.py", f"--workdir={workdir}", *flags, *more]


def main(workdir, data_dir, *more, baselines=("sar_only", "teacher_init"), **kwargs):
    return run_python(*arguments(workdir, data_dir, *more, baselines=baselines), **kwargs)


def evaluation(workdir, split="test"):
    return json.loads(Path(workdir, "evaluation.json").read_text())[split]


def digests(workdir, network, step=STEPS):
    record = CheckpointReader(os.path.join(workdir, "checkpoints", network)).record(step)
    return {path: entry["blake2b"] for path, entry in record["arrays"].items()}


def damage(checkpoint):
    """Flips one bit in every 1000 bytes of the array files."""
    for path in (p for p in checkpoint.rglob("*") if p.is_file() and p.stat().st_size > 10_000):
        content = bytearray(path.read_bytes())
        for k in range(100, len(content), 1000):
            content[k] ^= 1
        path.write_bytes(content)


def rows_of(workdir, network):
    """All lines of the log about a network, in order."""
    rows = [json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["network"] == network]


def log_of(workdir, network):
    """step -> metrics logged for the training steps up to that step."""
    return {row["step"]: row for row in rows_of(workdir, network) if "loss" in row}
