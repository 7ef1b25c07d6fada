"""The frozen teacher: where it lies, whether it fits, its restored variables, and the form in which it teaches."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from hfd_jax import assembly
from hfd_jax.assembly import Run
from hfd_jax.checkpoint import CheckpointReader
from hfd_jax.config_check import check_taps
from hfd_jax.data.facts import Facts
from hfd_jax.errors import CheckpointError, ConfigError
from hfd_jax.evaluate import Network, load_network
from hfd_jax.models.folding import fold
from hfd_jax.parallel import Jit, Pmap
from hfd_jax.workdir import Workdir


def check_teacher(config: ConfigDict, workdir: Workdir, facts: Facts, runs: list[Run]) -> None:
    """Reads the record of the teacher that the runs will use and holds it against config and data.

    Raises:
      CheckpointError: there is none, or it is damaged.
      ConfigError: other bands, classes, scale or architecture, or an unfinished one; says what differs.
    """
    folder = assembly.teacher_folder(config, workdir)
    try:
        reader = CheckpointReader(folder)
        record = reader.record(reader.choose(config.teacher.which))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. The student needs a teacher: run --config.stage=teacher (or all) first, "
            "or name one with --config.teacher.checkpoint"
        ) from error
    expected = {
        "sensor": "eo",
        "EO bands": list(assembly.chosen_bands(config, facts, "eo")),
        "classes": list(facts.class_names),
        "EO data type": facts.eo_dtype,
        "normalise.clip": config.normalise.clip,
    }
    found = {
        "sensor": record["sensor"],
        "EO bands": record["bands"]["eo"],
        "classes": record["facts"]["class_names"],
        "EO data type": record["facts"]["eo_dtype"],
        "normalise.clip": record["inputs"]["normalisation"]["clip"],
    }
    if any(run.from_teacher for run in runs):
        student = next(run for run in runs if run.from_teacher)
        expected["model"], found["model"] = assembly.describe_model(config, student), assembly.described_model(record)
    if not config.teacher.checkpoint and config.teacher.which == "latest":
        expected["steps"], found["steps"] = config.teacher.steps, record["step"]
    for what in expected:
        if found[what] != expected[what]:
            raise ConfigError(f"the teacher in {folder} has {what} {found[what]}; this run needs {expected[what]}")
    if any(run.distils for run in runs):
        check_taps(config, assembly.described_model(record)["architecture"])


def load_teacher(config: ConfigDict, workdir: Workdir, facts: Facts, run: Run, parallel: Jit | Pmap) -> Network:
    """Restores the teacher after `check_teacher`."""
    check_teacher(config, workdir, facts, [run])
    return load_network(assembly.teacher_folder(config, workdir), config.teacher.which, parallel)


def frozen_variables(teacher: Network, dtype: Any, parallel: Jit | Pmap) -> Any:
    """The teacher's variables as stage 2 runs them, on the host: statistics folded into the kernels, in `dtype`."""
    host = jax.device_get(parallel.local(teacher.variables))
    return jax.tree.map(lambda x: np.asarray(x, dtype), fold(host))


def identity(teacher: Network | None) -> dict[str, Any] | None:
    """What tells one teacher from another: its step and the digests of its parameters."""
    if teacher is None:
        return None
    arrays = teacher.record["arrays"].items()
    used = ("params/model/", "batch_stats/model/")
    return {"step": teacher.record["step"], "arrays": {k: v["blake2b"] for k, v in arrays if k.startswith(used)}}
