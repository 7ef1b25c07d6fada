"""Checks what other runs or tools must have made before: the teacher of the students, and pretrained encoders."""

import os
from collections.abc import Sequence

from ml_collections import ConfigDict

from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.errors import CheckpointError, ConfigError
from hfd_jax.core.workdir import Workdir, jsonable
from hfd_jax.data.facts import Facts
from hfd_jax.inference import restore
from hfd_jax.models.base import ResNetBased
from hfd_jax.models.mpresnet import MPResNet
from hfd_jax.models.pretrained import read_encoder
from hfd_jax.models.registry import ARCHITECTURES
from hfd_jax.train import build
from hfd_jax.train.networks import NetworkSpec, architecture_name, model_config, pretrained_file, teacher_folder
from hfd_jax.train.validate import check_taps


def check_teacher(config: ConfigDict, workdir: Workdir, facts: Facts, specs: Sequence[NetworkSpec]) -> None:
    """Compares the teacher that the networks will use with the config and the data.

    Raises:
      CheckpointError: the teacher is missing or damaged.
      ConfigError: its bands, classes, types or architecture differ, or it is unfinished; names the difference.
    """
    folder = teacher_folder(config, workdir)
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
        "EO bands": list(build.chosen_bands(config, facts, "eo")),
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
    if any(spec.from_teacher for spec in specs):
        student = next(spec for spec in specs if spec.from_teacher)
        # A record is JSON, which knows no tuples.
        expected["model"], found["model"] = (
            jsonable(model_config(config, student)),
            jsonable(restore.model_config(record)),
        )
    if not config.teacher.checkpoint and config.teacher.which == "latest":
        expected["steps"], found["steps"] = config.teacher.steps, record["step"]
    for what in expected:
        if found[what] != expected[what]:
            raise ConfigError(f"the teacher in {folder} has {what} {found[what]}; this run needs {expected[what]}")
    if any(spec.distils for spec in specs):
        check_taps(config, restore.model_config(record)["architecture"])


def check_pretrained(config: ConfigDict, workdir: Workdir, specs: Sequence[NetworkSpec]) -> None:
    """Reads the encoders that networks will start from; a network with checkpoints no longer needs its encoder.

    Raises:
      CheckpointError: a file is missing, damaged, or was not written by tools.import_weights.
      ConfigError: its depth or width differs from the config's, or the architecture has no ResNet encoder.
    """
    for spec in specs:
        path = pretrained_file(config, spec)
        folder = workdir.checkpoints(spec.name)
        if not path or (os.path.isdir(folder) and CheckpointReader(folder).steps()):
            continue
        field = f"config.{'teacher' if spec.sensor == 'eo' else 'student'}.pretrained"
        name = architecture_name(config, spec)
        network = ARCHITECTURES[name]
        # MP-ResNet has several copies of the coarse stages.
        if not issubclass(network, ResNetBased) or network is MPResNet:
            raise ConfigError(f"{field} is {path!r}: {name} has no plain ResNet encoder; leave the field empty")
        try:
            encoder = read_encoder(path)
        except CheckpointError as error:
            raise CheckpointError(f"{field}: {error}. Expected a file that tools.import_weights wrote") from error
        for what in ("depth", "width"):
            if getattr(encoder, what) != config.model[what]:
                raise ConfigError(
                    f"config.model.{what} is {config.model[what]}: {field} names {path}, a ResNet-{encoder.depth} of "
                    f"width {encoder.width}"
                )
