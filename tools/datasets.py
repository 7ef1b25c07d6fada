"""Command-line options of the data sets, as their readers declare them."""

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any

from hfd_jax.core.errors import DataError, UserError
from hfd_jax.core.options import Option, defaults, options_of, problems
from hfd_jax.data.builder import PairedTiles
from hfd_jax.data.catalogue import SceneSource
from hfd_jax.data.reader import Reader
from hfd_jax.data.registry import READERS
from hfd_jax.data.simulator import SceneOptions

NAMES = READERS.keys()
SCENES = {"scenes": {**options_of(SceneOptions), **options_of(SceneSource)}}


def reader_options() -> dict[str, Mapping[str, Option]]:
    """Name of each raw data set -> its options."""
    return {name: options_of(reader) for name, reader in READERS.items()}


def add_options(parser: argparse.ArgumentParser, simulated: bool = False) -> None:
    """Adds the options of all data sets, one group per data set; `simulated` includes those of "scenes".

    Data sets may share an option, which must then be declared alike. An option that is not given stays out of the
    namespace.
    """
    declared = reader_options() | (SCENES if simulated else {})
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, options in declared.items():
        for key, option in options.items():
            owners = [other for other in declared if key in declared[other]]
            for other in owners:
                if declared[other][key] != option:
                    raise ValueError(f"data sets {name} and {other} declare option --{key} differently")
            if owners[0] != name:
                continue
            title = " and ".join(owners)
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            shown = as_flag(option.default)
            groups[title].add_argument(
                f"--{key}",
                type=flag_type(option),
                # The members of a tuple are checked by `given_options`.
                choices=(option.choices or None) if option.type is not tuple else None,
                metavar="{true,false}" if option.type is bool else None,
                default=argparse.SUPPRESS,
                help=option.meaning + (f" (default: {shown})" if shown else ""),
            )


def flag_type(option: Option) -> Callable[[str], Any]:
    """The function that reads a flag's text: --flag=true for a bool, --flag=a,b for a tuple."""
    if option.type is bool:
        return _read_bool
    if option.type is tuple:
        member = type(option.default[0]) if option.default else str
        return lambda text: _read_tuple(text, member)
    return option.type


def as_flag(value: Any) -> str:
    """The text that `flag_type` reads as `value`; "" for None."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _read_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected true or false")
    return text.lower() == "true"


def _read_tuple(text: str, member: type) -> tuple[Any, ...]:
    try:
        return tuple(member(part.strip()) for part in text.split(",")) if text else ()
    except ValueError:
        kind = {int: "integers", float: "numbers"}.get(member, "values")
        raise argparse.ArgumentTypeError(f"{text!r}: expected {kind} separated by commas") from None


def given_options(name: str, arguments: argparse.Namespace, simulated: bool = False) -> dict[str, Any]:
    """Returns the options given for data set `name`.

    Raises:
      UserError: an option belongs only to other data sets, or its value is outside the declared limits.
    """
    declared = reader_options() | (SCENES if simulated else {})
    for key, owners in _owners(arguments, declared).items():
        if name not in owners:
            raise UserError(f"--{key} is an option of {' and '.join(owners)}; --dataset={name} does not take it")
    given = {key: getattr(arguments, key) for key in declared[name] if hasattr(arguments, key)}
    for part in (READERS[name],) if name in READERS else (SceneOptions, SceneSource):
        values = {**defaults(part), **given}
        for key, why in part.problems(values) if name in READERS else problems(part, values):
            raise UserError(f"--{key}={as_flag(values[key])}: {why}")
    return given


def make_source(
    name: str, raw_dir: str, arguments: argparse.Namespace, simulated: bool = False
) -> tuple[type[PairedTiles], Reader]:
    """The builder and the reader of a raw data set; `simulated` as given to `add_options`.

    Raises:
      DataError: the folder does not exist or does not hold this data set.
      UserError: an option of another data set was given, or a value is outside its limits.
    """
    options = given_options(name, arguments, simulated)
    if not os.path.isdir(raw_dir):
        raise DataError(f"{raw_dir}: no such folder")
    source = READERS[name](raw_dir, **options)
    return source.builder, source


def recognise(raw_dir: str, arguments: argparse.Namespace) -> str:
    """Name of the data set in `raw_dir`: the only one with a given option, or the first that recognises its layout.

    Raises:
      DataError: no data set recognises the layout.
    """
    for owners in _owners(arguments, reader_options()).values():
        if len(owners) == 1:
            return owners[0]
    if os.path.isdir(raw_dir):
        for name, reader in READERS.items():
            if reader.recognise(raw_dir):
                return name
    raise DataError(f"{raw_dir}: not the layout of a known data set; name it with --dataset ({', '.join(NAMES)})")


def _owners(arguments: argparse.Namespace, declared: Mapping[str, Mapping[str, Option]]) -> dict[str, list[str]]:
    """Given option -> data sets that declare it."""
    owners: dict[str, list[str]] = {}
    for name, options in declared.items():
        for key in options:
            if hasattr(arguments, key):
                owners.setdefault(key, []).append(name)
    return owners
