"""A trained network in one safetensors file: arrays and JSON, no code.

Arrays carry the parameters' paths ("params/encoder/conv1/kernel", "batch_stats/...", float32). The metadata hold the
checkpoint's record as JSON: architecture, sensor, bands, facts (unit, classes, colours, pixel size, look axis), input
statistics, config, step, data set, tiles, versions, the teacher's identity and a digest of every array. A digest over
arrays and metadata detects damage.
"""

import glob
import json
import os
import re
from typing import Any

import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from hfd_jax.core.errors import CheckpointError
from hfd_jax.models.pretrained import content_digest, read_safetensors

FORMAT, FORMAT_VERSION = "hfd_jax model", 1
ENDING = ".safetensors"
_PATH_FIELDS = ("data.dir", "teacher.checkpoint", "teacher.pretrained", "student.pretrained")


def write_model_file(path: str, record: dict[str, Any], variables: dict[str, Any]) -> None:
    """Writes a network and its record to one file.

    Args:
      path: path of the file, which must not exist; an interrupted call may leave an incomplete file.
      record: JSON-ready record of the network's checkpoint.
      variables: {"params", "batch_stats"} of the network, NumPy arrays, float32.

    Raises:
      OSError: the file cannot be written.
    """
    arrays = flatten_dict(variables, sep="/")
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "record": json.dumps(shareable(record), sort_keys=True),
    }
    content = safetensors.numpy.save(arrays, metadata | {"blake2b": content_digest(arrays, metadata)})
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_model_file(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `write_model_file` wrote.

    Args:
      path: path of the file.

    Returns:
      (record, {"params", "batch_stats"} as NumPy arrays).

    Raises:
      CheckpointError: the file is missing, damaged, from a newer version, or not a model file.
    """
    arrays, metadata = read_safetensors(path)
    digest = metadata.pop("blake2b", "")
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a model file; expected one written by tools.export --format=model")
    if digest != content_digest(arrays, metadata):
        raise CheckpointError(f"{path}: damaged, its content does not match its digest; copy or export it again")
    version = metadata["format_version"]
    if version != str(FORMAT_VERSION):
        raise CheckpointError(f"{path}: has format version {version}; this version of hfd_jax reads {FORMAT_VERSION}")
    return json.loads(metadata["record"]), unflatten_dict(arrays, sep="/")


def is_model_file(path: str) -> bool:
    """Whether `path` is a model file, judged by its header alone."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (safetensors.SafetensorError, OSError):
        return False


def find_model_file(path: str) -> str:
    """Returns the model file that `path` names: itself, or the only one in the folder `path`.

    Raises:
      CheckpointError: no model file is found, or the folder holds several.
    """
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise CheckpointError(f"{path}: no such file or folder; expected a model file ({ENDING})")
        return path
    found = sorted(glob.glob(os.path.join(glob.escape(path), "*" + ENDING)))
    if not found:
        raise CheckpointError(f"{path}: no model file (*{ENDING}) in this folder")
    if len(found) > 1:
        raise CheckpointError(f"{path}: {len(found)} {ENDING} files in this folder; name one: {', '.join(found)}")
    return found[0]


def shareable(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's record without its training state and without the folders in its paths."""
    own = re.compile("(params|batch_stats)/model/")
    kept = {key: value for key, value in record.items() if key != "unlogged"}
    kept["arrays"] = {path: entry for path, entry in record["arrays"].items() if own.match(path)}
    kept["config"] = json.loads(json.dumps(record["config"]))
    for field in _PATH_FIELDS:
        part, name = field.split(".")
        if kept["config"].get(part, {}).get(name):
            kept["config"][part][name] = os.path.basename(os.path.normpath(kept["config"][part][name]))
    if kept.get("pretrained"):
        kept["pretrained"] = kept["pretrained"] | {"file": os.path.basename(kept["pretrained"]["file"])}
    return kept
