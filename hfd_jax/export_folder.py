"""The folder of an exported network: the artifacts, model.json and README.txt, put in place as a whole."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hfd_jax.errors import WorkdirError, writing
from hfd_jax.evaluate import Network
from hfd_jax.labels import IGNORE_LABEL
from hfd_jax.models.segmenter import STRIDE
from hfd_jax.workdir import read_json, write_json

FORMAT_VERSION = 1
DESCRIPTION, README = "model.json", "README.txt"

_IMPORTS = {
    "stablehlo": "jax, json, pathlib, numpy as np",
    "savedmodel": "json, pathlib, numpy as np, tensorflow as tf",
}
_LOADS = {
    "stablehlo": "network = jax.jit(jax.export.deserialize(pathlib.Path(artifact['file']).read_bytes()).call)",
    "savedmodel": "network = tf.saved_model.load(artifact['file'])",
}
_CALLS = {
    "stablehlo": "logits = network(sar, np.isfinite(sar).all(-1))",
    "savedmodel": "logits = network.serve(sar, np.isfinite(sar).all(-1))['logits']",
}

_README = """{name}: classes of the ground from radar images alone.

Written by `python -m tools.export` of hfd_jax; to run it {needs} alone is needed. In this folder, in Python:

    {usage}

sar     [batch, height, width, {bands}] float32, bands {band_names}, unit {unit}, as stored: standardised inside.
valid   [batch, height, width] bool, False where there is no data; what sar holds there has no influence, it may be NaN.
logits  [batch, height, width, {classes}] float32: argmax over the last axis is the class, softmax its probability.

The batch may have any size; height and width are those of the artifact: {sizes}. It runs on {platforms}.
model.json tells the rest: classes and colours, statistics, origin, digests.
{promise}"""

_PROMISES = {
    "stablehlo": "JAX {jax} wrote it, and promises that it is read by versions up to six months younger.\n",
    "savedmodel": "Written with JAX {jax} for the op XlaCallModule of TensorFlow.\n",
}


@contextlib.contextmanager
def replacing(output: str, overwrite: bool) -> Iterator[str]:
    """A new folder to write into, which is called `output` once all is written.

    Args:
      output: missing, an empty folder, or with `overwrite` an earlier export, which is removed then.
      overwrite: whether one may be.

    Raises:
      WorkdirError: `output` is something else, or cannot be written.
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
    if os.path.exists(output) and not os.path.isdir(output):
        raise WorkdirError(f"{output} is a file; --output names a folder")
    found = set(os.listdir(output)) if os.path.exists(output) else set()
    if not found:
        return
    if not overwrite:
        raise WorkdirError(f"{output}: holds files already; choose another --output, or --overwrite an earlier export")
    if DESCRIPTION not in found:
        raise WorkdirError(f"{output}: no {DESCRIPTION} in it, so no earlier export; it is not overwritten")
    artifacts = {artifact["file"] for artifact in read_json(os.path.join(output, DESCRIPTION)).get("artifacts", [])}
    others = sorted(found - artifacts - {DESCRIPTION, README})
    if others:
        raise WorkdirError(f"{output}: {others[0]} in it is of no export; it is not overwritten")


def describe(
    folder: str, network: Network, kind: str, platforms: Sequence[str], sizes: dict[str, tuple[int, int]]
) -> dict[str, Any]:
    """Writes model.json and README.txt beside the artifacts.

    Args:
      folder: with the artifacts in it.
      network: that they hold.
      kind: "stablehlo" or "savedmodel".
      platforms: that they run on.
      sizes: name of an artifact -> (height, width).

    Returns:
      What model.json says.
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
        "artifacts": artifacts,
        "platforms": list(platforms),
        **_interface(network),
        "parameters": _parameters(network),
        "origin": _origin(network),
        "written_with": {"jax": jax.__version__},
        "usage": _usage(kind),
    }
    write_json(os.path.join(folder, DESCRIPTION), description)
    Path(folder, README).write_text(_readme(description))
    return description


def _interface(network: Network) -> dict[str, Any]:
    """What goes in and what comes out."""
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
    """Number and digest of the arrays inside, those of the checkpoint's that belong to the network itself."""
    arrays = {
        path: entry
        for path, entry in network.record["arrays"].items()
        if path.startswith(("params/model/", "batch_stats/model/"))
    }
    text = json.dumps({path: entry["blake2b"] for path, entry in arrays.items()}, sort_keys=True)
    return {
        "count": sum(int(np.prod(entry["shape"])) for entry in arrays.values()),
        "blake2b": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
    }


def _origin(network: Network) -> dict[str, Any]:
    record = network.record
    return {
        "data": record["facts"]["name"],
        "tiles": record["tiles"],
        "validation_miou": record["score"],
        "checkpoint": record["blake2b"],
        "model": record["model"],
        "dtype": record["dtype"],
        "versions": record["versions"],
    }


def _usage(kind: str) -> list[str]:
    return [
        f"import {_IMPORTS[kind]}",
        f"model = json.loads(pathlib.Path('{DESCRIPTION}').read_text())",
        "artifact = model['artifacts'][0]",
        _LOADS[kind],
        "sar = np.zeros((1, artifact['height'], artifact['width'], len(model['input']['sar']['bands'])), np.float32)",
        _CALLS[kind],
    ]


def _readme(description: dict[str, Any]) -> str:
    kind, sar = description["format"], description["input"]["sar"]
    return _README.format(
        name=description["name"],
        needs={"stablehlo": "JAX", "savedmodel": "TensorFlow"}[kind],
        usage="\n    ".join(description["usage"]),
        bands=len(sar["bands"]),
        band_names=", ".join(sar["bands"]),
        unit={"db": "dB (10 log10 of linear power)", "raw": "that of the data set"}[sar["unit"]],
        classes=len(description["classes"]),
        sizes=", ".join(f"{artifact['height']} x {artifact['width']}" for artifact in description["artifacts"]),
        platforms=", ".join(description["platforms"]),
        promise=_PROMISES[kind].format(**description["written_with"]),
    )


def _digests(folder: str, name: str) -> dict[str, str]:
    """file -> SHA-256, of an artifact that is a file or a folder of files."""
    artifact = Path(folder, name)
    files = [artifact] if artifact.is_file() else sorted(path for path in artifact.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
