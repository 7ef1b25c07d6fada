"""Compares the shapes of two parameter trees."""

from typing import Any

import jax


def shape_differences(expected: Any, found: Any) -> list[str]:
    """Lists leaves that are missing or differ in shape, as "path: expected (3, 4), found (3, 5)"."""

    def shapes(tree):
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape)
            for path, x in jax.tree.leaves_with_path(tree)
        }

    wanted, present = shapes(expected), shapes(found)
    return [
        f"{path}: expected {wanted.get(path, 'nothing')}, found {present.get(path, 'nothing')}"
        for path in sorted(wanted.keys() | present.keys())
        if wanted.get(path) != present.get(path)
    ]


def listed(lines: list[str]) -> str:
    """Joins the first eight lines and counts the rest."""
    more = f" (and {len(lines) - 8} more)" if len(lines) > 8 else ""
    return "; ".join(lines[:8]) + more
