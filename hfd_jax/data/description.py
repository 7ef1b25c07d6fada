"""dataset.json: reads and checks the description of a folder of GeoTIFFs (`folder.py` shows its keys)."""

import itertools
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from hfd_jax.core.errors import DataError, nearest
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data.facts import LOOK_AXES, SAR_UNITS
from hfd_jax.data.longitudes import overlap

UNKNOWN_CODE = 254  # table entry of codes that the description does not list

_KEYS = {
    "": ("name", "sar", "eo", "label", "look_axis", "split"),
    "sar": ("bands", "unit", "nodata", "folder"),
    "eo": ("bands", "nodata", "folder", "offset"),
    "label": ("classes", "ignore", "folder"),
    "split": ("by", "train", "validation", "test"),
}
_OPTIONAL = {"nodata", "folder", "offset", "ignore", "validation"}


def read_description(path: str) -> dict[str, Any]:
    if not os.path.exists(path):
        raise DataError(f"{path}: missing; it describes the data set (see hfd_jax/data/folder.py)")
    with open(path, encoding="utf-8-sig") as file:
        try:
            text = json.load(file)
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON ({error})") from error
    for part, known in _KEYS.items():
        values = text.get(part, {}) if part else text
        where = f"{path}: {part + '.' if part else ''}"
        for key in values:
            if key not in known:
                raise DataError(f"{where}{key} is unknown; {nearest(key, known)}")
        for key in known:
            if key not in values and key not in _OPTIONAL:
                raise DataError(f"{where}{key} is missing")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", str(text["name"])):
        expected = "letters, digits, '_', '-' and '.', first a letter or digit"
        raise DataError(f"{path}: name is {text['name']!r}; expected {expected}")
    _check_choice(path, "sar.unit", text["sar"]["unit"], SAR_UNITS)
    _check_choice(path, "look_axis", text["look_axis"], LOOK_AXES)
    _check_choice(path, "split.by", text["split"]["by"], ("list", "longitude", "columns"))
    _check_classes(path, text["label"])
    _check_ranges(path, text["split"])
    return text


def _check_classes(path: str, label: dict[str, Any]) -> None:
    classes, ignored = label["classes"], label.get("ignore", [])
    for number, entry in enumerate(classes):
        if not isinstance(entry, dict) or not {"code", "name"} <= set(entry):
            raise DataError(f"{path}: label.classes[{number}] is {entry!r}; expected a code and a name")
    codes = [entry["code"] for entry in classes]
    for code in [*codes, *ignored]:
        if not isinstance(code, int) or not 0 <= code <= 255:
            raise DataError(f"{path}: label code {code!r}; expected a whole number from 0 to 255")
    if len(classes) < 2 or len(set(codes)) < len(classes):
        raise DataError(f"{path}: label.classes needs at least two classes with different codes")
    if set(codes) & set(ignored):
        raise DataError(f"{path}: label code {min(set(codes) & set(ignored))} is both a class and ignored")


def _check_ranges(path: str, split: dict[str, Any]) -> None:
    """Checks the types of the values and that ranges do not overlap."""
    parts = {key: value for key, value in split.items() if key != "by"}
    for key, value in parts.items():
        if split["by"] == "list":
            if not isinstance(value, str):
                raise DataError(
                    f"{path}: split.{key} is {value!r}; expected the name of a file, since split.by is 'list'"
                )
        elif not (isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value)):
            expected = f"a pair of numbers, since split.by is {split['by']!r}"
            raise DataError(f"{path}: split.{key} is {value!r}; expected {expected}")
        elif not value[0] < value[1] or (split["by"] == "columns" and not 0 <= value[0] < value[1] <= 1):
            raise DataError(f"{path}: split.{key} is {value!r}; expected [start, stop], for columns within 0 to 1")
    if split["by"] != "list":
        for (one, first), (other, second) in itertools.combinations(parts.items(), 2):
            if overlap(first, second):
                raise DataError(f"{path}: split.{one} and split.{other} overlap; splits must not share ground")


def code_table(label: dict[str, Any]) -> np.ndarray:
    """[256] code -> class index, IGNORE_LABEL, or UNKNOWN_CODE for codes that the description does not list."""
    table = np.full(256, UNKNOWN_CODE, np.uint8)
    table[label.get("ignore", [])] = IGNORE_LABEL
    table[[entry["code"] for entry in label["classes"]]] = range(len(label["classes"]))
    return table


def _check_choice(path: str, field: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise DataError(f"{path}: {field} is {value!r}; {nearest(value, choices)}")
