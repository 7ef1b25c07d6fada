"""Finds damage to prepared data: digests of the files that describe a data set, and readable errors for its shards.

array_record keeps a hash of every chunk of a shard and checks it whenever it reads one, so shards need no digest.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from hfd_jax.core.errors import DataError, writing

DESCRIBING = ("dataset_info.json", "features.json", "metadata.json")
DIGESTS = "digests.json"
ADVICE = "restore it from a copy, or prepare the data set again with --overwrite"


def write_digests(directory: str) -> None:
    """Writes the digests of the files that describe the data set in `directory`."""
    path = os.path.join(directory, DIGESTS)
    with writing(path):
        with open(path + ".part", "w", encoding="utf-8") as file:
            json.dump({name: _digest(os.path.join(directory, name)) for name in DESCRIBING}, file, indent=2)
        os.replace(path + ".part", path)


def check_digests(directory: str) -> None:
    """Raises DataError if a describing file differs from its digest. Data sets of version 0.1 have no digests."""
    path = os.path.join(directory, DIGESTS)
    if not os.path.exists(path):
        return
    try:
        with open(path, encoding="utf-8") as file:
            expected = json.load(file)
        stated = [expected[name] for name in DESCRIBING]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); {ADVICE}") from error
    for name, digest in zip(DESCRIBING, stated, strict=True):
        described = os.path.join(directory, name)
        if not os.path.exists(described):
            raise DataError(f"{described}: missing; {ADVICE}")
        if _digest(described) != digest:
            raise DataError(f"{described}: damaged or changed, it does not match its digest in {path}; {ADVICE}")


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.blake2b(file.read(), digest_size=16).hexdigest()


class TileSequence(Sequence):
    """Random access to the tiles of one split, as dicts of arrays.

    Args:
      tiles: TFDS's random access to the split.
      where: names the data set and the split in messages.

    Raises:
      DataError: a tile cannot be read, because its shard is damaged or missing.
    """

    def __init__(self, tiles: Sequence[dict[str, Any]], where: str):
        self._tiles, self._where = tiles, where

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self._where}: no tile {index}, there are {len(self)}")
        try:
            return self._tiles[index]
        except MemoryError:
            raise
        except Exception as error:  # array_record and TFDS raise errors of many types
            reason = f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
            raise DataError(f"{self._where}, tile {index}: cannot be read ({reason}); {ADVICE}") from error
