"""A trained SAR network as an artifact that runs without this project: StableHLO of jax.export, or a SavedModel.

The artifact maps (sar [B, H, W, bands] float32 in the stored unit, valid [B, H, W] bool) to logits [B, H, W, K]
float32. Filter, normalisation and parameters are inside, as constants; nothing of a teacher or of adapters is. The
batch is symbolic. H and W are fixed, an artifact each: matrices for upsampling and averaging are made per size.
"""

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import Exported, symbolic_shape

from hfd_jax.core.errors import ConfigError
from hfd_jax.core.parallel import Jit
from hfd_jax.core.workdir import Workdir
from hfd_jax.data.inputs import network_input
from hfd_jax.inference import export_folder
from hfd_jax.inference.restore import Network, find_network, network_from_record
from hfd_jax.models.hfdnet import STRIDE

FORMATS = ("stablehlo", "savedmodel")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is written.

    Attributes:
      sizes: (height, width) in pixels of each artifact; () for the crop that the network was trained on.
      format: one of FORMATS.
      platforms: that every artifact runs on, of PLATFORMS.
      overwrite: replaces an earlier export.

    Raises:
      ConfigError: a value is none of those, a size no multiple of 32, or TensorFlow is needed and missing.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    format: str = "stablehlo"
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")
    overwrite: bool = False

    def __post_init__(self):
        for height, width in self.sizes:
            if min(height, width) <= 0 or height % STRIDE or width % STRIDE:
                raise ConfigError(f"size {height}x{width}: expected multiples of the network's stride, {STRIDE}")
        for what, values, known in (("format", {self.format}, FORMATS), ("platforms", {*self.platforms}, PLATFORMS)):
            if not values or values - {*known}:
                raise ConfigError(f"{what} {', '.join(sorted(values))}: expected out of {', '.join(known)}")
        if self.format == "savedmodel" and importlib.util.find_spec("tensorflow") is None:
            raise ConfigError("format savedmodel: TensorFlow is not installed (package tensorflow or tensorflow-cpu)")


def open_network(workdir: Workdir, name: str, which: str | None, dtype: str | None = None) -> Network:
    """Restores a SAR network of a run.

    Args:
      workdir: of the run.
      name: of the network, as its folder below checkpoints/.
      which: "latest" or "best"; None: as the run evaluated.
      dtype: to compute in, of `DTYPES`; None for that of the training.

    Raises:
      WorkdirError: the run has no such network.
      ConfigError: the network reads EO.
      CheckpointError: of `load_network`.
    """
    network = find_network(workdir, name, which, Jit(jax.local_devices()[:1]))
    if network.sensor != "sar":
        raise ConfigError(f"network {name!r} reads {network.sensor.upper()}; what is exported reads SAR")
    if not dtype:
        return network
    record = network.record | {"dtype": dtype}
    return dataclasses.replace(network, record=record, model=network_from_record(record))


def inference(network: Network) -> Callable[[Any, Any], jax.Array]:
    """(sar [B, H, W, bands] in the stored unit, valid [B, H, W] bool) -> logits [B, H, W, K] float32."""
    variables = jax.device_get(network.variables)  # what is closed over becomes part of the program

    def logits(sar, valid):
        batch = network_input({"sar": sar, "sar_valid": valid}, network.inputs)
        return network.model.apply(variables, batch["sar"], train=False)[0]

    return logits


def lower(network: Network, size: tuple[int, int], platforms: tuple[str, ...]) -> Exported:
    """The program for any number of images of one size, (height, width)."""
    shape = symbolic_shape(f"batch, {size[0]}, {size[1]}")
    sar = jax.ShapeDtypeStruct((*shape, len(network.record["bands"]["sar"])), jnp.float32)
    valid = jax.ShapeDtypeStruct(shape, jnp.bool_)
    with _without_source_lines():
        return jax.export.export(jax.jit(inference(network)), platforms=platforms)(sar, valid)


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    """Programs that are lowered meanwhile do not name the files and lines that they come from.

    Else the same network would be other bytes elsewhere, and tell everyone where the project lay.
    """
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def write(network: Network, output: str, options: Options) -> dict[str, Any]:
    """Writes the folder `output`: the artifacts, model.json and README.txt; all of them or none.

    Returns:
      What model.json says.

    Raises:
      WorkdirError: something else has that name, or it cannot be written.
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


def _save_stablehlo(exported: Exported, path: str) -> None:
    with open(path, "wb") as file:
        file.write(exported.serialize())


def _save_savedmodel(exported: Exported, path: str) -> None:
    # Nothing is computed with TensorFlow; without this it announces how it would.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf  # noqa: PLC0415 - seconds, and not installed everywhere
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
