"""Measures the time from the command to the first training step."""

import os
import subprocess
import sys
import tempfile
import time

from hfd_jax.core.errors import UserError

_COMMAND = (
    "main.py",
    "--config=configs/quickstart.py",
    "--config.data.scenes.train=32",
    "--config.data.scenes.validation=0",
    "--config.data.scenes.test=16",
    "--config.data.label_share=1.0",
    "--config.baselines=()",
)


def time_first_steps() -> str:
    """Times the quickstart's two networks with an empty and with a filled compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        run(folder, "prepare")  # generates the data set before timing
        for title, cache in (("empty", "cache"), ("filled", "cache")):
            teacher, student = run(folder, cache)
            lines.append(
                f"{title} compilation cache: teacher's first step after {teacher:.1f} s, "
                f"student's first step {student:.1f} s after the teacher's last"
            )
    return "\n".join(lines)


def run(folder: str, cache: str) -> tuple[float, float]:
    """Returns the seconds to the teacher's first step, and from its last step to the student's first."""
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        flags = [f"--workdir={workdir}", f"--config.data.dir={folder}/data"]
        flags += ["--config.teacher.steps=2", "--config.student.steps=1", "--config.eval.panels=0"]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": os.path.join(folder, cache)}
        start, marks = time.perf_counter(), {}
        process = subprocess.Popen(
            [sys.executable, "-u", *_COMMAND, *flags],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with process:
            for line in process.stdout:
                words = line.split()
                if len(words) > 1 and words[0] in ("teacher", "student") and "/" in words[1]:
                    marks[words[0], words[1].split("/")[0]] = time.perf_counter()
        if process.returncode:
            raise UserError(
                f"the quickstart failed with exit status {process.returncode}; run it alone to see the error"
            )
    return marks["teacher", "1"] - start, marks["student", "1"] - marks["teacher", "2"]
