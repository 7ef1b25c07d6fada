"""Restores a trained network, its architecture, input and parameters, from a checkpoint or a model file."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np

from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.errors import CheckpointError, ConfigError, WorkdirError, nearest
from hfd_jax.core.options import implied, options_of
from hfd_jax.core.parallel import Jit, Pmap
from hfd_jax.core.trees import listed, shape_differences
from hfd_jax.core.workdir import Workdir, read_json
from hfd_jax.data.facts import Facts
from hfd_jax.data.inputs import InputSpec
from hfd_jax.inference.model_file import find_model_file, read_model_file
from hfd_jax.models import registry
from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.registry import ARCHITECTURES, DTYPES


@dataclasses.dataclass(frozen=True)
class Network:
    """A restored network, ready for inference.

    Attributes:
      record: the JSON record of its checkpoint.
      model, inputs: the module and the input specification that the record describes.
      variables: {"params", "batch_stats"}, as `parallel.replicate` returns them.
    """

    record: dict[str, Any]
    model: SegmentationNetwork
    inputs: InputSpec
    variables: Any

    @property
    def sensor(self) -> str:
        return self.record["sensor"]


def load_network(path: str, which: str, parallel: Jit | Pmap) -> Network:
    """Restores the parameters of a network, without the rest of its training state.

    Args:
      path: a checkpoint folder, for example WORKDIR/checkpoints/student, or a model file.
      which: "latest" or "best" checkpoint; a model file holds a single one.
      parallel: the devices to put the parameters on.

    Raises:
      CheckpointError: there is no checkpoint, it is damaged, or (with "best") none has a score.
    """
    record, variables = _read_file(path) if os.path.isfile(path) else _read_checkpoint(path, which)
    model = network_from_record(record)
    return Network(record, model, InputSpec.from_dict(record["inputs"]), parallel.replicate(variables))


def _read_checkpoint(directory: str, which: str) -> tuple[dict[str, Any], dict[str, Any]]:
    checkpoints = CheckpointReader(directory)
    step = checkpoints.choose(which)
    record = checkpoints.record(step)
    restored = checkpoints.restore(step, {name: {"model": shapes} for name, shapes in _shapes(record).items()})
    return record, {collection: part["model"] for collection, part in restored.items()}


def _read_file(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    record, variables = read_model_file(path)
    problems = shape_differences(_shapes(record), variables)
    if problems:
        raise CheckpointError(f"{path} does not fit the network it describes: {listed(problems)}")
    return record, variables


def _shapes(record: dict[str, Any]) -> dict[str, Any]:
    """{"params", "batch_stats"} of jax.ShapeDtypeStruct of the network that a record describes."""
    model, bands = network_from_record(record), len(record["bands"][record["sensor"]])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 64, 64, bands), np.float32)))
    return {collection: shapes[collection] for collection in ("params", "batch_stats")}


def find_network(workdir: Workdir, name: str, which: str | None, parallel: Jit | Pmap) -> Network:
    """Restores a network of a run by its name.

    Args:
      workdir: workdir of the run.
      name: "teacher" (including one that another run trained), "student" or a baseline.
      which: "latest" or "best"; None uses the checkpoint that the run evaluated.
      parallel: the devices to put the parameters on.

    Raises:
      WorkdirError: the folder holds no run, or the run has no such network; lists those it has.
      CheckpointError: see `load_network`.
    """
    config = read_json(workdir.config)
    folder = (config["teacher"]["checkpoint"] if name == "teacher" else "") or workdir.checkpoints(name)
    if not os.path.isdir(folder):
        root = os.path.dirname(workdir.checkpoints(name))
        known = sorted(set(os.listdir(root)) - {"damaged"}) if os.path.isdir(root) else []
        raise WorkdirError(f"{root}: no network {name!r} in it" + (f"; {nearest(name, known)}" if known else " yet"))
    return load_network(folder, which or config["eval"]["checkpoint"], parallel)


def open_network(path: str, name: str | None, which: str | None, parallel: Jit | Pmap) -> Network:
    """Restores a network from a workdir or from a model file.

    Args:
      path: the workdir of a run, a model file, or the folder that holds one.
      name: name of the network; None for the student of a run or the network in the file.
      which: "latest" or "best" checkpoint of a run; None uses the one that the run evaluated.
      parallel: the devices to put the parameters on.

    Raises:
      WorkdirError, CheckpointError: the network does not exist or cannot be read.
      ConfigError: `name` or `which` asks for something that the model file does not hold.
    """
    if os.path.exists(Workdir(path).config):
        return find_network(Workdir(path), name or "student", which, parallel)
    if os.path.isdir(os.path.join(path, "checkpoints")):
        raise WorkdirError(f"{Workdir(path).config}: missing; is {path} the workdir of a run?")
    return load_model(path, name, which, parallel)


def load_model(path: str, name: str | None, which: str | None, parallel: Jit | Pmap) -> Network:
    """Restores the network in a model file; arguments and errors as of `open_network`."""
    file = find_model_file(path)
    if which:
        raise ConfigError(f"{file}: a model file holds one checkpoint; leave out checkpoint={which!r}")
    network = load_network(file, "latest", parallel)
    if name and name != network.record["network"]:
        raise ConfigError(f"{file}: holds the network {network.record['network']!r}, not {name!r}")
    return network


def model_config(record: dict[str, Any]) -> dict[str, Any]:
    """{"architecture": name, field: value} of a checkpoint's network.

    Raises:
      CheckpointError: the architecture is unknown.
    """
    # Old records, from when there was a single architecture, do not name it.
    model = {"architecture": registry.DEFAULT, **record["model"]}
    if model["architecture"] in ARCHITECTURES:
        model = implied(ARCHITECTURES[model["architecture"]]) | model
    else:
        found = model["architecture"]
        raise CheckpointError(f"{record['title']} is of architecture {found!r}; {nearest(found, ARCHITECTURES)}")
    unknown = sorted(model.keys() - options_of(ARCHITECTURES[model["architecture"]]) - {"architecture"})
    if unknown:
        raise CheckpointError(
            f"{record['title']} has the option {unknown[0]!r}, which {model['architecture']} does not have in this "
            "version; a newer hfd_jax may have written it"
        )
    return model


def network_from_record(record: dict[str, Any]) -> SegmentationNetwork:
    """Builds the module that a checkpoint's record describes; raises CheckpointError if its architecture is unknown."""
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
    """Returns what identifies a trained network: its step and the digests of its parameters."""
    if network is None:
        return None
    arrays = network.record["arrays"].items()
    used = ("params/model/", "batch_stats/model/")
    return {"step": network.record["step"], "arrays": {k: v["blake2b"] for k, v in arrays if k.startswith(used)}}
