"""Shared fixtures. Tests run on eight fake devices; a test that needs fewer uses some of them."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# Compilation takes half of the tests' time, and programs that run for seconds do not need optimised code.
FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {FAST_COMPILE}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from absl import flags

from hfd_jax.data import catalogue
from hfd_jax.data.facts import Facts
from hfd_jax.data.simulator import SceneOptions

flags.FLAGS.mark_as_parsed()
ROOT = Path(__file__).resolve().parent.parent
# Shared by the workers and by the processes that tests start, so that each program compiles only once.
if "HFD_JAX_TEST_CACHE" not in os.environ:
    os.environ["HFD_JAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="hfd_jax_compiled_")
    atexit.register(shutil.rmtree, os.environ["HFD_JAX_TEST_CACHE"], ignore_errors=True)
CACHE_SIZE = 10 * 2**30  # never reached; with a limit, JAX locks the files that two processes use
jax.config.update("jax_compilation_cache_dir", os.environ["HFD_JAX_TEST_CACHE"])
jax.config.update("jax_compilation_cache_max_size", CACHE_SIZE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


# The longest files run first: a long file that starts last would keep one worker busy and the other idle.
LONG = (
    "test_main",
    "test_processes",
    "test_notebook",
    "test_interruption",
    "test_registry",
    "test_variants",
    "test_public_data",
    "test_extending",
    "test_steps",
)


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes minutes; --slow runs it"))


@pytest.fixture(scope="session")
def scenes_dir(tmp_path_factory):
    """Root folder of prepared data sets; the fixture `scenes` adds a small simulated one."""
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def scenes(scenes_dir):
    source = catalogue.SceneSource(SceneOptions(size=64), train=24, validation=6, test=10)
    return catalogue.prepare_scenes(source, scenes_dir)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def facts():
    return Facts(
        name="toy",
        sar_bands=("VV", "VH"),
        eo_bands=("R", "G", "B"),
        eo_dtype="uint8",
        sar_unit="db",
        class_names=("land", "water", "town"),
        class_colours=((0, 200, 0), (0, 0, 200), (200, 0, 0)),
        look_axis="x",
    )


def python_environment(**more):
    """Environment of a process with one device and fast compilation."""
    return os.environ | {
        "XLA_FLAGS": FAST_COMPILE,
        "JAX_COMPILATION_CACHE_DIR": os.environ["HFD_JAX_TEST_CACHE"],
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(CACHE_SIZE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        **more,
    }


def run_python(*arguments, check=True, env=None, timeout=600):
    """Runs `python ARGUMENTS` with one device in the root of the repository; returns the finished process."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=python_environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    return done
