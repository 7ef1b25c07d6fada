"""Checks JSON values against declared fields and collects all faults, so that they are reported at once."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from hfd_jax.core.errors import DataError, nearest

COMMENT = "//"  # keys that begin with it are comments


class Faults:
    """Collects the faults of a JSON file; `raise_any` reports them in one error."""

    def __init__(self, path: str):
        self._path, self._lines = path, []

    def add(self, field: str, value: Any, expected: str) -> None:
        self.say(f"{field} is {_shown(value)}; {expected}")

    def say(self, text: str) -> None:
        if text not in self._lines:
            self._lines.append(text)

    def raise_any(self) -> None:
        """Raises DataError if there is a fault."""
        if len(self._lines) == 1:
            raise DataError(f"{self._path}: {self._lines[0]}")
        if self._lines:
            listed = "".join(f"\n  {line}" for line in self._lines)
            raise DataError(f"{self._path}: {len(self._lines)} faults{listed}")


@dataclasses.dataclass(frozen=True)
class Field:
    """One key of a JSON object.

    Attributes:
      expected: what a value should be, for messages.
      accepts: whether a value is valid.
      required: whether the key must be there.
      choices: the valid values, if they can be listed.
    """

    expected: str
    accepts: Callable[[Any], bool]
    required: bool = False
    choices: tuple[str, ...] = ()


def choice(*choices: str, required: bool = False) -> Field:
    return Field("", lambda value: isinstance(value, str) and value in choices, required, choices)


def check_object(faults: Faults, where: str, value: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Reports unknown, missing and invalid keys of an object.

    Args:
      faults: to add to.
      where: name of the object, "" for the whole file.
      value: as JSON gives it.
      fields: the known keys.

    Returns:
      The valid entries.
    """
    if not isinstance(value, dict):
        faults.add(where or "the file", value, f"expected an object with {', '.join(fields)}")
        return {}
    prefix, valid = f"{where}." if where else "", {}
    for key, entry in value.items():
        if key.startswith(COMMENT):
            continue
        if key not in fields:
            faults.say(f"{prefix}{key} is unknown; {nearest(key, fields)}")
            continue
        field = fields[key]
        if field.accepts(entry):
            valid[key] = entry
        else:
            expected = nearest(entry, field.choices) if field.choices else f"expected {field.expected}"
            faults.add(prefix + key, entry, expected)
    for key, field in fields.items():
        if field.required and key not in value:
            choices = f"; expected one of: {', '.join(field.choices)}" if field.choices else f"; {field.expected}"
            faults.say(f"{prefix}{key} is missing{choices}")
    return valid


def read_json(path: str) -> Any:
    """Reads a JSON file; a duplicate key, NaN and Infinity are faults, too.

    Raises:
      DataError: the file cannot be read or is not valid JSON.
    """

    def unique(pairs):
        keys = [key for key, _ in pairs if not key.startswith(COMMENT)]
        for key in keys:
            if keys.count(key) > 1:
                raise DataError(f"{path}: {key!r} is a duplicate key; expected each key once")
        return dict(pairs)

    def no_number(name):
        raise DataError(f"{path}: holds {name}, which is not JSON; expected a number or null")

    if not os.path.isfile(path):
        raise DataError(f"{path}: missing; expected the description of the data set (docs/data.md, or tools.describe)")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file, object_pairs_hook=unique, parse_constant=no_number)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(is_whole(v) and 0 <= v <= 255 for v in value)


def is_list(member: Callable[[Any], bool], least: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(member, value))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
