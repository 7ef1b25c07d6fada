"""Exports a trained SAR network: as a model file, or as a program that runs without this project.

A program (StableHLO of jax.export, or a SavedModel) maps (sar [B, H, W, bands] float32 in the stored unit, valid
[B, H, W] bool) to logits [B, H, W, K] float32. It contains filter, normalisation and parameters as constants, but no
teacher and no adapters. The batch is symbolic; H and W are fixed per artifact, because the matrices for upsampling and
averaging depend on them.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import Exported, symbolic_shape

from hfd_jax.core.errors import ConfigError, writing
from hfd_jax.core.parallel import Jit
from hfd_jax.core.workdir import Workdir, read_json
from hfd_jax.data.inputs import network_input
from hfd_jax.inference import export_folder
from hfd_jax.inference.model_card import model_card
from hfd_jax.inference.model_file import ENDING, write_model_file
from hfd_jax.inference.restore import Network, find_network, network_from_record
from hfd_jax.models.base import STRIDE

FORMATS = ("stablehlo", "savedmodel", "model")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@dataclasses.dataclass(frozen=True)
class Options:
    """How a network is exported.

    Attributes:
      sizes: (height, width) in pixels of each artifact; () for the training crop. A model file takes any size.
      format: one of FORMATS.
      platforms: members of PLATFORMS that every artifact runs on; not used for a model file.
      overwrite: replace an earlier export.
      license: SPDX identifier of the weights' licence, for the model card; "" if it is not stated.

    Raises:
      ConfigError: a value is not allowed, a size is not a multiple of 32, or TensorFlow is needed but not installed.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    format: str = "stablehlo"
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")
    overwrite: bool = False
    license: str = ""

    def __post_init__(self):
        for height, width in self.sizes:
            if min(height, width) <= 0 or height % STRIDE or width % STRIDE:
                raise ConfigError(f"size {height}x{width}: expected multiples of the network's stride, {STRIDE}")
        for what, values, known in (("format", {self.format}, FORMATS), ("platforms", {*self.platforms}, PLATFORMS)):
            if not values or values - {*known}:
                raise ConfigError(f"{what} {', '.join(sorted(values))}: expected out of {', '.join(known)}")
        if self.format == "model" and self.sizes:
            raise ConfigError("format model: the file serves images of any size; leave out the size")
        if self.license and self.format != "model":
            raise ConfigError(f"license {self.license}: only format model has a model card; leave out the license")
        if self.license and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", self.license):
            raise ConfigError(f"license {self.license!r}: expected an SPDX identifier such as Apache-2.0 or CC-BY-4.0")
        if self.format == "savedmodel" and importlib.util.find_spec("tensorflow") is None:
            raise ConfigError("format savedmodel: TensorFlow is not installed (package tensorflow or tensorflow-cpu)")


def open_sar_network(workdir: Workdir, name: str, which: str | None, dtype: str | None = None) -> Network:
    """Restores a SAR network of a run.

    Args:
      workdir: workdir of the run.
      name: name of the network and of its folder below checkpoints/.
      which: "latest" or "best"; None for the checkpoint that the run evaluated.
      dtype: dtype of the computation, one of `DTYPES`; None for the dtype used in training.

    Raises:
      WorkdirError: the run has no such network.
      ConfigError: the network reads EO.
      CheckpointError: see `load_network`.
    """
    network = find_network(workdir, name, which, Jit(jax.local_devices()[:1]))
    if network.sensor != "sar":
        raise ConfigError(f"network {name!r} reads {network.sensor.upper()}; only SAR networks are exported")
    if not dtype:
        return network
    record = network.record | {"dtype": dtype}
    return dataclasses.replace(network, record=record, model=network_from_record(record))


def inference(network: Network) -> Callable[[Any, Any], jax.Array]:
    """(sar [B, H, W, bands] in the stored unit, valid [B, H, W] bool) -> logits [B, H, W, K] float32."""
    variables = jax.device_get(network.variables)  # closed over, so that they become part of the program

    def logits(sar, valid):
        batch = network_input({"sar": sar, "sar_valid": valid}, network.inputs)
        return network.model.apply(variables, batch["sar"], train=False)[0]

    return logits


def lower(network: Network, size: tuple[int, int], platforms: tuple[str, ...]) -> Exported:
    """Lowers the program for any number of images of one size, (height, width)."""
    shape = symbolic_shape(f"batch, {size[0]}, {size[1]}")
    sar = jax.ShapeDtypeStruct((*shape, len(network.record["bands"]["sar"])), jnp.float32)
    valid = jax.ShapeDtypeStruct(shape, jnp.bool_)
    with _without_source_lines():
        return jax.export.export(jax.jit(inference(network)), platforms=platforms)(sar, valid)


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    """Keeps source files and line numbers out of programs that are lowered within the block.

    Otherwise the same network would give different bytes in another folder, and reveal that folder's path.
    """
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def write(network: Network, output: str, options: Options) -> dict[str, Any]:
    """Writes the folder `output` with the artifacts, model.json and README.txt; all of them or none.

    Returns:
      The content of model.json.

    Raises:
      WorkdirError: `output` holds other files, or cannot be written.
    """
    save = {"stablehlo": _save_stablehlo, "savedmodel": _save_savedmodel}[options.format]
    crop = network.record["config"]["data"]["crop"]
    with export_folder.replacing(output, options.overwrite) as folder:
        written = {}
        for size in options.sizes or ((crop, crop),):
            name = f"{network.record['network']}_{size[0]}x{size[1]}.{options.format}"
            save(lower(network, size, options.platforms), os.path.join(folder, name))
            written[name] = size
        return export_folder.describe(folder, network, options.format, options.platforms, written)


def write_model(
    network: Network, output: str, overwrite: bool, evaluation: dict[str, Any], licence: str = ""
) -> dict[str, Any]:
    """Writes the folder `output` with NETWORK.safetensors and its model card README.md; both or none.

    Args:
      network: to write.
      output: the folder.
      overwrite: replace an earlier export.
      evaluation: split -> the network's row of evaluation.json; see `evaluation_of`.
      licence: see `Options.license`.

    Returns:
      {"name", "step", "parameters": {"count"}}.

    Raises:
      WorkdirError: `output` holds other files, or cannot be written.
    """
    variables = jax.device_get(network.variables)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    name = network.record["network"] + ENDING
    with export_folder.replacing(output, overwrite) as folder, writing(output):
        write_model_file(os.path.join(folder, name), network.record, variables)
        card = model_card(network.record, count, name, evaluation, licence)
        Path(folder, export_folder.CARD).write_text(card, encoding="utf-8")
    return {"name": network.record["title"], "step": network.record["step"], "parameters": {"count": count}}


def evaluation_of(workdir: Workdir, network: Network) -> dict[str, Any]:
    """Returns split -> row of the run's evaluation.json, for rows at the step of this checkpoint."""
    if not os.path.exists(workdir.evaluation):
        return {}
    name, step = network.record["network"], network.record["step"]
    rows = {split: networks.get(name) for split, networks in read_json(workdir.evaluation).items()}
    if network.record["dtype"] != network.record["config"]["dtype"]:
        return {}  # measured in another precision
    return {split: row for split, row in rows.items() if row and row["step"] == step}


def _save_stablehlo(exported: Exported, path: str) -> None:
    with open(path, "wb") as file:
        file.write(exported.serialize())


def _save_savedmodel(exported: Exported, path: str) -> None:
    # TensorFlow computes nothing here; this suppresses its message about how it would.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf  # noqa: PLC0415 - takes seconds, and is optional
    from jax.experimental import jax2tf  # noqa: PLC0415 - imports TensorFlow

    shapes = [f"({', '.join(map(str, aval.shape))})" for aval in exported.in_avals]
    logits = jax2tf.convert(
        exported.call,
        polymorphic_shapes=shapes,
        with_gradient=False,
        native_serialization_platforms=exported.platforms,
    )
    signature = [
        tf.TensorSpec([None, *aval.shape[1:]], aval.dtype, name)
        for name, aval in zip(("sar", "valid"), exported.in_avals, strict=True)
    ]
    module = tf.Module()
    module.serve = tf.function(
        lambda sar, valid: {"logits": logits(sar, valid)}, input_signature=signature, autograph=False
    )
    tf.saved_model.save(module, path, signatures={"serving_default": module.serve})
