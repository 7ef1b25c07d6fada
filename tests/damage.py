"""Damage to files, at places chosen by a random generator."""

import os
from pathlib import Path


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def hurt(path, rng):
    """Damages a file in one of four ways at a random position; returns the name of the damage."""
    kind = [truncate, empty, flip_bit, Path.unlink][rng.integers(4)]
    if kind is flip_bit:
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
    elif kind is truncate:
        os.truncate(path, rng.integers(path.stat().st_size))
    else:
        kind(path)
    return kind.__name__
