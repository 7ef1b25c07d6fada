"""The --config flag of main.py and of the tools that train: absl and ml_collections, with errors in one line."""

import ast
import difflib
import os
import re
import runpy

from absl import flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.tuple_parser import TupleParser

from hfd_jax.core.errors import ConfigError

HELP = """\
  --config=FILE          the experiment, for example configs/quickstart.py (required)
  --config.FIELD=VALUE   sets a field of it, for example --config.distill.hfd.weight=5.0; may be repeated

configs/default.py lists all fields with their meaning, units and choices."""

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with the experiment's config.", lock_config=True)


def parse(argv: list[str]) -> list[str]:
    """Parses absl's flags and every --config.FIELD=VALUE; returns the remaining arguments.

    Raises:
      ConfigError: the config file is missing, a field does not exist, or a value has the wrong type.
    """
    path, argument = _config_path(argv)
    if path and not os.path.isfile(path):
        raise ConfigError(f"--config={path}: no such file; configs/ holds the project's configs")
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError, TypeError, flags.Error) as error:
        raise ConfigError(_unknown_field(path, argument, argv) or _wrong_value(argv, error)) from error
    for field, text in _overrides(argv):
        if field in flags.FLAGS and isinstance(flags.FLAGS[field].parser, TupleParser) and not _is_tuple(text):
            raise ConfigError(f"{field} is {text!r}: expected a tuple, {_as_tuple(text)}")
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # at INFO the libraries log every file access
    return rest


def given() -> ConfigDict | None:
    """The parsed config without further checks; None without --config."""
    return _CONFIG.value


def config(reference: ConfigDict) -> ConfigDict:
    """The parsed config.

    Args:
      reference: a config with every valid field.

    Raises:
      ConfigError: --config is missing, or the config's fields differ from those of `reference`.
    """
    if _CONFIG.value is None:
        raise ConfigError("--config is missing, for example --config=configs/quickstart.py")
    found, known = set(field_names(_CONFIG.value)), set(field_names(reference))
    if found - known:
        raise ConfigError(unknown_field(min(found - known), reference))
    if known - found:
        raise ConfigError(f"config.{min(known - found)} is missing; let the config start from configs/default.py")
    return _CONFIG.value


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    """All fields of a config as "part.field"."""
    names = []
    for key, value in config.items():
        names += field_names(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
    return names


def _config_path(argv: list[str]) -> tuple[str | None, list[str]]:
    """Splits --config=FILE or --config=FILE:ARGUMENT into (file, [argument]); (None, []) without the flag."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word in ("--config", "-config") or word.startswith(("--config=", "-config=")):
            path, *argument = (word.split("=", 1)[1] if "=" in word else following).split(":", 1)
            return path, argument
    return None, []


def _unknown_field(path: str | None, argument: list[str], argv: list[str]) -> str | None:
    """The error about the first field in the file or in argv that does not exist; None if all exist."""
    fields = [word.split("=")[0].lstrip("-").removeprefix("config.") for word in argv if word.startswith("--config.")]
    if path is None:
        return "--config.FIELD needs --config=FILE" if fields else None
    try:
        config = runpy.run_path(path)["get_config"](*argument)
    except (AttributeError, KeyError, TypeError) as error:
        return f"{path}: " + str(error).replace("\\n", " ").strip("'\"")
    return next(filter(None, (unknown_field(field, config) for field in fields)), None)


def _wrong_value(argv: list[str], error: Exception) -> str:
    """Returns the field, value and expected type of the override that caused `error`, or the error text."""
    text = str(error).splitlines()[0]
    for word in argv:
        field, _, value = word.partition("=")
        if field.startswith("--config.") and f"{word}: " in text:
            reason = text.rpartition(f"{word}: ")[2]
            return f"{field[2:]} is {value!r}: expected {_expected_type(field)} ({reason})"
    return text


def _overrides(argv: list[str]) -> list[tuple[str, str]]:
    """(config.FIELD, text of its value) for every override, as --config.FIELD=VALUE or --config.FIELD VALUE."""
    found = []
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if re.match("--?config[.]", word):
            field, equals, text = word.lstrip("-").partition("=")
            found.append((field, text if equals else following))
    return found


def _is_tuple(text: str) -> bool:
    # ml_collections takes any other text as a tuple of one string: VV,VH would become ('VV,VH',).
    try:
        return isinstance(ast.literal_eval(text), tuple | list)
    except (ValueError, SyntaxError):
        return False


def _as_tuple(text: str) -> str:
    """The tuple that is probably meant: VV,VH -> ('VV','VH')."""
    if text in ("", "None"):
        return "()"
    words = [word if re.fullmatch("[0-9.]+", word) else repr(word) for word in re.findall(r"[\w.-]+", text)]
    return f"({','.join(words)}{',' if len(words) == 1 else ''})"


def _expected_type(flag: str) -> str:
    kind = re.sub("Parser$", "", type(flags.FLAGS[flag[2:]].parser).__name__) if flag[2:] in flags.FLAGS else ""
    kinds = {"Float": "a number", "Integer": "an integer", "Boolean": "True or False", "_Literal": "a tuple"}
    return {**kinds, "Tuple": "a tuple such as ('a','b')"}.get(kind, "a value of the field's type")


def unknown_field(field: str, config: ConfigDict) -> str | None:
    """The error about a field ("part.field") that does not exist in `config`; None if it exists."""
    known = field_names(config)
    return None if field in known else f"config.{field} does not exist: {_nearest_field(field, known)}"


def _nearest_field(field: str, known: list[str]) -> str:
    """Suggests the field with the most similar path and name, or up to three that are equally similar.

    Among equally similar fields, those at the depth of `field` come first, then those in the same part of the config.
    """

    def similarity(other: str) -> float:
        names = field.rpartition(".")[2], other.rpartition(".")[2]
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in ((field, other), names)) / 2

    inside = [other for other in known if other.startswith(f"{field}.")]
    if inside:
        return f"it is a part of the config, with fields such as {inside[0]!r}"
    scores = {other: similarity(other) for other in known}
    best = max(scores.values())
    if best < 0.6:
        return f"expected a field of {', '.join(sorted({other.split('.')[0] for other in known}))}"
    tied = [other for other in known if scores[other] == best]

    def place(other: str) -> tuple[bool, bool]:
        return other.count(".") == field.count("."), other.split(".")[0] == field.split(".")[0]

    nearest = [repr(other) for other in tied if place(other) == max(map(place, tied))]
    return f"did you mean {' or '.join(nearest[:3])}?"
