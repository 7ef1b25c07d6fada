"""What a program does in its first lines: streams that cannot be written, signals, the locale's encoding."""

import os
import signal
import subprocess
import sys

import pytest

from hfd_jax.core import startup
from hfd_jax.core.errors import STOPPED_EXIT_CODE
from tests.conftest import ROOT

# Prints more than any buffer holds, then leaves a file to show that it came to its end.
PRINT = """
import os, sys
from hfd_jax.core import startup
startup.begin()
for _ in range(3000):
    print("x" * 100)
    print("y" * 100, file=sys.stderr)
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2, "a closed stream's number went to a file"
    file.write(sys.getfilesystemencoding())
print("M\\u00fcnchen \\udcfc")
"""
WAIT = """
import sys, time
from hfd_jax.core import startup
startup.begin()
print("ready", flush=True)
time.sleep(60)
"""


def shell(command, *arguments, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    return subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, *arguments],
        env=environment, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "streams", ["| true; exit ${PIPESTATUS[0]}", "2>&1 | head -1; exit ${PIPESTATUS[0]}", ">/dev/full 2>/dev/full", ">&-", ">&- 2>&-", "<&- >&- 2>&-"]
)  # fmt: skip
def test_streams_that_cannot_be_written_end_nothing(tmp_path, streams):
    done = shell(f'"$1" -c "$2" "$3" {streams}', PRINT, str(tmp_path / "end"))
    assert done.returncode == 0, done.stderr[-500:]
    assert (tmp_path / "end").read_text() == "utf-8"


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX"},
        {"PYTHONIOENCODING": "ascii"},
    ],
)
def test_files_are_utf8_in_every_locale_and_no_character_is_an_error(tmp_path, locale):
    done = shell('"$1" -c "$2" "$3"', PRINT, str(tmp_path / "end"), **locale)
    assert done.returncode == 0 and (tmp_path / "end").read_text() == "utf-8"
    assert done.stdout.splitlines()[-1] in (b"M\xc3\xbcnchen \\udcfc", b"M\\xfcnchen \\udcfc")


@pytest.mark.parametrize("number", startup.STOPPING)
def test_signals_before_anything_is_loaded_end_with_the_code_of_a_stopped_run(number):
    process = subprocess.Popen([sys.executable, "-c", WAIT], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == STOPPED_EXIT_CODE and b": stopped; the same command continues\n" in text


def test_a_run_below_nohup_survives_the_loss_of_its_terminal():
    command = ["nohup", sys.executable, "-c", WAIT]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == STOPPED_EXIT_CODE, "of SIGUSR1"


@pytest.mark.parametrize("program", [["main.py"], ["-m", "tools.evaluate"], ["-m", "tools.compare"]])
def test_every_program_takes_over_the_signals_before_its_slow_imports(program):
    """Imports of JAX are replaced by a signal that the process sends to itself."""
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('jax', 'absl', 'numpy'): os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import runpy\n"
        "sys.argv = sys.argv[1:]\n"
        "if sys.argv[0] == '-m':\n"
        "    sys.argv = ['-m']; runpy.run_module(NAME, run_name='__main__', alter_sys=True)\n"
        "else:\n"
        "    runpy.run_path('main.py', run_name='__main__')\n"
    ).replace("NAME", repr(program[-1]))
    done = subprocess.run(
        [sys.executable, "-c", code, *program], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == STOPPED_EXIT_CODE, done.stderr.decode()[-500:]
