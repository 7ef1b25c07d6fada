"""Compares the shapes of two parameter trees."""

from typing import Any

import jax


def shape_differences(expected: Any, found: Any) -> list[str]:
    """Names the leaves of two trees that differ in presence or shape, as "path: expected [..], found [..]"."""

    def shapes(tree):
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape)
            for path, x in jax.tree.leaves_with_path(tree)
        }

    one, other = shapes(expected), shapes(found)
    return [
        f"{path}: expected {one.get(path, 'nothing')}, found {other.get(path, 'nothing')}"
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]


def listed(lines: list[str]) -> str:
    """The first eight of them, and how many more there are."""
    more = f" (and {len(lines) - 8} more)" if len(lines) > 8 else ""
    return "; ".join(lines[:8]) + more
