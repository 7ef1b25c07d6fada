"""Digests of arrays and records, which tell whether what a checkpoint holds is what was written."""

import hashlib
import json
from typing import Any

import jax
import numpy as np


def digest(array: np.ndarray) -> str:
    """Digest of the values of an array, in C order. Does not copy a contiguous array."""
    values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.blake2b(values, digest_size=16).hexdigest()


def record_digest(record: dict[str, Any]) -> str:
    """Digest of a record as JSON, without the digest that it holds itself."""
    text = json.dumps({key: value for key, value in record.items() if key != "blake2b"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def fingerprints(tree: Any) -> dict[str, dict[str, Any]]:
    """Maps the path of each NumPy array in a tree to its shape, dtype and digest."""
    return {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "blake2b": digest(leaf)}
        for path, leaf in by_path(tree).items()
    }


def by_path(tree: Any) -> dict[str, Any]:
    """Maps the path of each leaf, such as "params/model/kernel", to the leaf."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }
