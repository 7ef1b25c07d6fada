"""The folder of an exported network, put in place as a whole: the artifacts with model.json and README.txt."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hfd_jax.core.errors import WorkdirError, writing
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.workdir import read_json, write_json
from hfd_jax.inference.model_file import ENDING, is_model_file
from hfd_jax.inference.restore import Network
from hfd_jax.models.base import STRIDE

FORMAT_VERSION = 1
DESCRIPTION, README = "model.json", "README.txt"
CARD = "README.md"  # beside a model file


@dataclasses.dataclass(frozen=True)
class _Calling:
    """How an artifact is called from Python: the package it needs, the lines of code, and for how long they work."""

    needs: str
    imports: str
    load: str
    call: str
    promise: str


_CALLING = {
    "stablehlo": _Calling(
        "JAX and flatbuffers (pip install jax flatbuffers)",
        "import jax, json, pathlib, numpy as np",
        "network = jax.jit(jax.export.deserialize(pathlib.Path(artifact['file']).read_bytes()).call)",
        "logits = network(sar, np.isfinite(sar).all(-1))",
        "Written by JAX {jax}; later versions read it for at least six months.",
    ),
    "savedmodel": _Calling(
        "TensorFlow",
        "import json, pathlib, numpy as np, tensorflow as tf",
        "network = tf.saved_model.load(artifact['file'])",
        "logits = network.serve(sar, np.isfinite(sar).all(-1))['logits']",
        "Written by JAX {jax} for TensorFlow's operation XlaCallModule.",
    ),
}

_README = """{name}: land-cover classes from radar images alone.

Written by `python -m tools.export` of hfd_jax; running it needs only {needs}. In this folder, in Python:

    {usage}

sar     [batch, height, width, {bands}] float32, bands {band_names}, unit {unit}; standardised inside.
valid   [batch, height, width] bool, False where there is no data; the values of sar there are ignored and may be NaN.
logits  [batch, height, width, {classes}] float32: argmax over the last axis is the class, softmax its probability.

The batch may have any size; height and width are those of the artifact: {sizes}. It runs on {platforms}.
model.json holds classes and colours, statistics, origin and digests.
{promise}
"""


@contextlib.contextmanager
def replacing(output: str, overwrite: bool) -> Iterator[str]:
    """Yields a new folder to write into, which is renamed to `output` when the block ends without an error.

    Args:
      output: a missing or empty folder, or with `overwrite` an earlier export, which is then removed.
      overwrite: replace an earlier export.

    Raises:
      WorkdirError: `output` holds other files, or cannot be written.
    """
    output = os.path.abspath(output)
    _check_replaceable(output, overwrite)
    temporary, old = (f"{output}.{os.getpid()}.{kind}" for kind in ("tmp", "old"))
    with writing(output):
        os.makedirs(temporary)
        try:
            yield temporary
            if os.path.exists(output):
                os.replace(output, old)
            os.replace(temporary, output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(output: str, overwrite: bool) -> None:
    if not os.path.exists(output):
        return
    if not os.path.isdir(output):
        raise WorkdirError(f"{output} is a file; --output names a folder")
    found = set(os.listdir(output))
    if found and not overwrite:
        raise WorkdirError(f"{output}: holds files already; choose another --output, or --overwrite an earlier export")
    others = sorted(found - _files_of_export(output))
    if others:
        raise WorkdirError(f"{output}: {others[0]} in it is not part of an earlier export; nothing is overwritten")


def _files_of_export(folder: str) -> set[str]:
    """Names of the files that an earlier export wrote; empty if the folder holds no export."""
    models = {n for n in os.listdir(folder) if n.endswith(ENDING) and is_model_file(os.path.join(folder, n))}
    if len(models) == 1:  # several were put together by hand
        return {CARD, *models}
    path = os.path.join(folder, DESCRIPTION)
    description = read_json(path) if os.path.exists(path) else {}
    if not isinstance(description, dict) or "artifacts" not in description:
        return set()
    return {DESCRIPTION, README, *(artifact["file"] for artifact in description["artifacts"])}


def describe(
    folder: str, network: Network, kind: str, platforms: Sequence[str], sizes: dict[str, tuple[int, int]]
) -> dict[str, Any]:
    """Writes model.json and README.txt beside the artifacts.

    Args:
      folder: with the artifacts in it.
      network: the one in the artifacts.
      kind: "stablehlo" or "savedmodel".
      platforms: those that the artifacts run on.
      sizes: name of an artifact -> (height, width).

    Returns:
      The content of model.json.
    """
    artifacts = [
        {"file": name, "height": height, "width": width, "sha256": _digests(folder, name)}
        for name, (height, width) in sizes.items()
    ]
    description = {
        "format_version": FORMAT_VERSION,
        "format": kind,
        "name": network.record["title"],
        "network": network.record["network"],
        "step": network.record["step"],
        "model": network.record["model"],
        "dtype": network.record["dtype"],
        "artifacts": artifacts,
        "platforms": list(platforms),
        **_interface(network),
        "parameters": _parameters(network),
        "origin": _origin(network),
        "written_with": {"jax": jax.__version__},
        "usage": _usage(kind),
    }
    write_json(os.path.join(folder, DESCRIPTION), description)
    Path(folder, README).write_text(_readme(description), encoding="utf-8")
    return description


def _interface(network: Network) -> dict[str, Any]:
    """Describes input, output and classes."""
    facts, bands, inputs = network.record["facts"], network.record["bands"]["sar"], network.inputs
    names, colours = facts["class_names"], facts["class_colours"]
    image = ["batch", "height", "width"]
    return {
        "input": {
            "sar": {"shape": [*image, len(bands)], "dtype": "float32", "bands": bands, "unit": facts["sar_unit"]},
            "valid": {"shape": image, "dtype": "bool", "rule": "False where the image has no data (nodata value, NaN)"},
            "inside": {
                "filter": inputs.normalisation.sar_filter,
                "clip": [list(inputs.sar.low), list(inputs.sar.high)] if inputs.normalisation.clip else None,
                "mean": list(inputs.sar.mean),
                "std": list(inputs.sar.std),
            },
            "pixel_size_m": facts["pixel_size"] or None,
            "look_axis": facts["look_axis"],
            "stride": STRIDE,
        },
        "output": {"logits": {"shape": [*image, len(names)], "dtype": "float32"}},
        "classes": [{"name": name, "colour": list(colour)} for name, colour in zip(names, colours, strict=True)],
        "ignore_label": IGNORE_LABEL,
    }


def _parameters(network: Network) -> dict[str, Any]:
    """Number of parameters, and one digest over the network's own arrays, batch statistics included."""
    arrays = {
        path: entry
        for path, entry in network.record["arrays"].items()
        if path.startswith(("params/model/", "batch_stats/model/"))
    }
    text = json.dumps({path: entry["blake2b"] for path, entry in arrays.items()}, sort_keys=True)
    trained = [entry["shape"] for path, entry in arrays.items() if path.startswith("params/")]
    return {
        # As in the model card and the tables: batch statistics are measured, not trained.
        "count": sum(int(np.prod(shape)) for shape in trained),
        "blake2b": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
    }


def _origin(network: Network) -> dict[str, Any]:
    record = network.record
    return {
        "data": record["facts"]["name"],
        "tiles": record["tiles"],
        "validation_miou": record["score"],
        "checkpoint": record["blake2b"],
        "versions": record["versions"],
    }


def _usage(kind: str) -> list[str]:
    calling = _CALLING[kind]
    return [
        calling.imports,
        f"model = json.loads(pathlib.Path('{DESCRIPTION}').read_text())",
        "artifact = model['artifacts'][0]",
        calling.load,
        "sar = np.zeros((1, artifact['height'], artifact['width'], len(model['input']['sar']['bands'])), np.float32)",
        calling.call,
    ]


def _readme(description: dict[str, Any]) -> str:
    kind, sar = description["format"], description["input"]["sar"]
    return _README.format(
        name=description["name"],
        needs=_CALLING[kind].needs,
        usage="\n    ".join(description["usage"]),
        bands=len(sar["bands"]),
        band_names=", ".join(sar["bands"]),
        unit={"db": "dB (10 log10 of linear power)", "raw": "that of the data set"}[sar["unit"]],
        classes=len(description["classes"]),
        sizes=", ".join(f"{artifact['height']} x {artifact['width']}" for artifact in description["artifacts"]),
        platforms=", ".join(description["platforms"]),
        promise=_CALLING[kind].promise.format(**description["written_with"]),
    )


def _digests(folder: str, name: str) -> dict[str, str]:
    """file -> SHA-256, for an artifact that is a file or a folder of files."""
    artifact = Path(folder, name)
    files = [artifact] if artifact.is_file() else sorted(path for path in artifact.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
