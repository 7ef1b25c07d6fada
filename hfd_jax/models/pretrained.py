"""Pretrained encoders: the files written by tools.import_weights, and networks that start from them.

The files are safetensors files, which hold only arrays and text. The arrays are named by their paths in this project
("params/encoder/layer1_0/conv1/kernel", kernels HWIO, float32). The metadata describes the network and its origin and
contains a digest over everything.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from hfd_jax.core.errors import CheckpointError, writing
from hfd_jax.core.logs import say
from hfd_jax.core.parallel import same_everywhere
from hfd_jax.core.trees import listed, shape_differences
from hfd_jax.models.resnet import fit_stem

_FORMAT = "hfd_jax encoder"
_COLOURS = {"RED": "R", "B4": "R", "GREEN": "G", "B3": "G", "BLUE": "B", "B2": "B"}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A pretrained encoder.

    Attributes:
      variables: {"params", "batch_stats"} of `models.resnet.ResNet`, float32.
      depth, width: see `models.resnet.ResNet`.
      bands: names of its input bands, in order; () if unknown.
      source: name of the file from which it was imported.
      source_sha256: SHA-256 of that file.
    """

    variables: dict[str, Any]
    depth: int
    width: int
    bands: tuple[str, ...]
    source: str
    source_sha256: str

    @property
    def stem_bands(self) -> int:
        return self.variables["params"]["conv1"]["kernel"].shape[2]

    def metadata(self) -> dict[str, str]:
        """Returns the metadata of the file, without the digest."""
        return {
            "format": _FORMAT,
            "depth": str(self.depth),
            "width": str(self.width),
            "stem_bands": str(self.stem_bands),
            "bands": ",".join(self.bands),
            "source": self.source,
            "source_sha256": self.source_sha256,
        }

    def digest(self) -> str:
        """Returns the blake2b digest over arrays and metadata."""
        return content_digest(_flat(self.variables), self.metadata())


def write_encoder(path: str, encoder: Encoder) -> None:
    """Writes the file atomically: an interrupted call leaves the old file or none.

    Raises:
      WorkdirError: If the file cannot be written.
    """
    arrays, metadata = _flat(encoder.variables), encoder.metadata()
    content = safetensors.numpy.save(arrays, metadata | {"blake2b": content_digest(arrays, metadata)})
    temporary = f"{path}.{os.getpid()}.tmp"
    with writing(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def read_encoder(path: str) -> Encoder:
    """Reads a file written by `write_encoder`.

    Raises:
      CheckpointError: If the file is missing, damaged, or was not written by `write_encoder`.
    """
    arrays, metadata = read_safetensors(path)
    digest = metadata.pop("blake2b", "")
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: expected a file written by tools.import_weights")
    if digest != content_digest(arrays, metadata):
        raise CheckpointError(f"{path}: damaged, the content does not match its digest; import it again")
    bands = tuple(metadata["bands"].split(",")) if metadata["bands"] else ()
    variables = {collection: part["encoder"] for collection, part in unflatten_dict(arrays, sep="/").items()}
    numbers = {key: int(metadata[key]) for key in ("depth", "width")}
    return Encoder(
        variables, bands=bands, source=metadata["source"], source_sha256=metadata["source_sha256"], **numbers
    )


def read_safetensors(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns (arrays, metadata) of any safetensors file.

    Raises:
      CheckpointError: If the file cannot be read.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no dict
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two: unusual dtypes
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from error


def sha256(path: str) -> str:
    """Returns the SHA-256 of a file.

    Raises:
      CheckpointError: If the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def band_sources(old: Sequence[str], new: Sequence[str]) -> list[int | None]:
    """Returns, for each new band, the index of the old band of the same name or None, as input to `fit_stem`.

    The names R, RED, B4 and B04 are equivalent, as are G, GREEN, B3, B03 and B, BLUE, B2, B02 (the band numbers of
    Sentinel-2 and Landsat 8). Names are not case-sensitive.
    """
    known = [_plain(band) for band in old]
    return [known.index(_plain(band)) if _plain(band) in known else None for band in new]


def begin(variables: dict[str, Any], path: str, bands: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Replaces a network's encoder by the pretrained one in a file, which must be the same for all processes.

    Args:
      variables: freshly initialised {"params", "batch_stats"} of a network with a ResNet encoder.
      path: a file written by `write_encoder`.
      bands: names of the network's input bands, to which the stem is fitted.

    Returns:
      The variables with the pretrained encoder, and the encoder's metadata for the records of the checkpoints.

    Raises:
      CheckpointError: If the file cannot be used or shapes differ; the message names the parameters.
    """
    encoder = read_encoder(path)
    digest = encoder.digest()
    if not same_everywhere(int(digest[:7], 16)):
        raise CheckpointError(
            f"{path}: the file differs between processes; expected it on storage shared by all of them"
        )
    sources = band_sources(encoder.bands, bands)
    stem = {"kernel": fit_stem(encoder.variables["params"]["conv1"]["kernel"], sources)}
    fitted = {**encoder.variables, "params": {**encoder.variables["params"], "conv1": stem}}
    fitted = {collection: {**variables[collection], "encoder": part} for collection, part in fitted.items()}
    problems = shape_differences(variables, fitted)
    if problems:
        raise CheckpointError(f"the encoder in {path} does not fit the network: {listed(problems)}")
    origins = ["the mean" if source is None else encoder.bands[source] for source in sources]
    stems = ", ".join(f"{band} from {origin}" for band, origin in zip(bands, origins, strict=True))
    say(f"encoder: ResNet-{encoder.depth} from {encoder.source}; stem: {stems}")
    return fitted, encoder.metadata() | {"file": path, "blake2b": digest}


def _plain(band: str) -> str:
    name = re.sub(r"^B0+(?=\d)", "B", band.upper())
    return _COLOURS.get(name, name)


def _flat(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns path -> array, with the paths used in the file."""
    return flatten_dict({collection: {"encoder": part} for collection, part in variables.items()}, sep="/")


def content_digest(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    """blake2b over the names, types, shapes and values of arrays, and over metadata."""
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
