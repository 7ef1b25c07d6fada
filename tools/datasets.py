"""Command-line options of the data sets, as their readers declare them."""

import argparse
import os
from collections.abc import Mapping
from typing import Any

from hfd_jax.core.errors import DataError, UserError
from hfd_jax.core.options import Option, options_of
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
            default = "" if option.default in (None, "") else f" (default: {option.default})"
            groups[title].add_argument(
                f"--{key}",
                type=option.type,
                choices=option.choices or None,
                default=argparse.SUPPRESS,
                help=option.meaning + default,
            )


def given_options(name: str, arguments: argparse.Namespace, simulated: bool = False) -> dict[str, Any]:
    """Returns the options given for data set `name`. Raises UserError if one belongs only to other data sets."""
    declared = reader_options() | (SCENES if simulated else {})
    for key, owners in _owners(arguments, declared).items():
        if name not in owners:
            raise UserError(f"--{key} is an option of {' and '.join(owners)}; --dataset={name} does not take it")
    return {key: getattr(arguments, key) for key in declared[name] if hasattr(arguments, key)}


def make_source(
    name: str, raw_dir: str, arguments: argparse.Namespace, simulated: bool = False
) -> tuple[type[PairedTiles], Reader]:
    """The builder and the reader of a raw data set; `simulated` as given to `add_options`.

    Raises:
      DataError: the folder does not exist or does not hold this data set.
      UserError: an option of another data set was given.
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
