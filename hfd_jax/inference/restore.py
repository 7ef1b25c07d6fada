"""Restores a trained network from its checkpoint: architecture, input and parameters, without the run's config."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np

from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.errors import CheckpointError, ConfigError, WorkdirError, nearest
from hfd_jax.core.parallel import Jit, Pmap
from hfd_jax.core.workdir import Workdir, read_json
from hfd_jax.data.facts import Facts
from hfd_jax.data.inputs import InputSpec
from hfd_jax.models import registry
from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.registry import ARCHITECTURES, DTYPES


@dataclasses.dataclass(frozen=True)
class Network:
    """A restored network, ready to be evaluated.

    Attributes:
      record: the JSON record of its checkpoint.
      model, inputs: the module and the input that the record describes.
      variables: {"params", "batch_stats"}, as `parallel.replicate` returns them.
    """

    record: dict[str, Any]
    model: SegmentationNetwork
    inputs: InputSpec
    variables: Any

    @property
    def sensor(self) -> str:
        return self.record["sensor"]


def load_network(directory: str, which: str, parallel: Jit | Pmap) -> Network:
    """Restores the parameters of the network in a checkpoint folder, and nothing else of the training state.

    Args:
      directory: for example WORKDIR/checkpoints/student.
      which: "latest" or "best".
      parallel: the devices to put the parameters on.

    Raises:
      CheckpointError: no checkpoint, a damaged one, or (with "best") none with a score.
    """
    checkpoints = CheckpointReader(directory)
    step = checkpoints.choose(which)
    record = checkpoints.record(step)
    model = network_from_record(record)
    bands = len(record["bands"][record["sensor"]])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 64, 64, bands), np.float32)))
    wanted = {collection: {"model": shapes[collection]} for collection in ("params", "batch_stats")}
    restored = checkpoints.restore(step, wanted)
    variables = {collection: restored[collection]["model"] for collection in wanted}
    return Network(record, model, InputSpec.from_dict(record["inputs"]), parallel.replicate(variables))


def find_network(workdir: Workdir, name: str, which: str | None, parallel: Jit | Pmap) -> Network:
    """Restores a network of a run by its name.

    Args:
      workdir: the run's.
      name: "teacher" (including one that another run trained), "student" or a baseline.
      which: "latest" or "best"; None uses the checkpoint that the run evaluated.
      parallel: the devices to put the parameters on.

    Raises:
      WorkdirError: no run, or no such network in it; names those that exist.
      CheckpointError: see `load_network`.
    """
    config = read_json(workdir.config)
    folder = (config["teacher"]["checkpoint"] if name == "teacher" else "") or workdir.checkpoints(name)
    if not os.path.isdir(folder):
        root = os.path.dirname(workdir.checkpoints(name))
        known = sorted(set(os.listdir(root)) - {"damaged"}) if os.path.isdir(root) else []
        raise WorkdirError(f"{root}: no network {name!r} in it" + (f"; {nearest(name, known)}" if known else " yet"))
    return load_network(folder, which or config["eval"]["checkpoint"], parallel)


def model_config(record: dict[str, Any]) -> dict[str, Any]:
    """{"architecture": name, field: value} of a checkpoint's network.

    Raises:
      CheckpointError: an unknown architecture.
    """
    # Records written before there was a choice do not name their architecture.
    model = {"architecture": registry.DEFAULT, **record["model"]}
    if model["architecture"] not in ARCHITECTURES:
        found = model["architecture"]
        raise CheckpointError(f"{record['title']} is of architecture {found!r}; {nearest(found, ARCHITECTURES)}")
    return model


def network_from_record(record: dict[str, Any]) -> SegmentationNetwork:
    """The module that a checkpoint's record describes; raises CheckpointError for an unknown architecture."""
    options = {"dtype": DTYPES[record["dtype"]], "pool_size": record["config"]["data"]["crop"]}
    return registry.build(model_config(record), classes=len(record["facts"]["class_names"]), **options)


def check_fits(record: dict[str, Any], facts: Facts) -> None:
    """Raises ConfigError if a data set differs in classes, bands, unit or type from what a network was trained on."""
    trained = Facts.from_dict(record["facts"])
    for what in ("class_names", "sar_unit", "eo_dtype"):
        expected, found = getattr(trained, what), getattr(facts, what)
        if expected != found:
            raise ConfigError(f"{record['title']} was trained with {what} {expected}; {facts.name} has {found}")
    for sensor in ("sar", "eo"):
        missing = [band for band in record["bands"][sensor] if band not in getattr(facts, f"{sensor}_bands")]
        if missing:
            raise ConfigError(f"{record['title']} reads the {sensor} band {missing[0]!r}; {facts.name} has none")


def identity(network: Network | None) -> dict[str, Any] | None:
    """What distinguishes one trained network from another: its step and the digests of its parameters."""
    if network is None:
        return None
    arrays = network.record["arrays"].items()
    used = ("params/model/", "batch_stats/model/")
    return {"step": network.record["step"], "arrays": {k: v["blake2b"] for k, v in arrays if k.startswith(used)}}
