"""The --config flag of main.py and of the tools that train: absl and ml_collections, with errors in one line."""

import os
import runpy

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from hfd_jax.core.errors import ConfigError, nearest

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with the experiment's config.", lock_config=True)


def parse(argv: list[str]) -> list[str]:
    """Parses absl's flags and every --config.FIELD=VALUE; returns what is left of argv.

    Raises:
      ConfigError: a config file that is missing, a misspelt field, a value of the wrong type.
    """
    path, argument = _config_path(argv)
    if path and not os.path.isfile(path):
        raise ConfigError(f"--config={path}: no such file; configs/ holds those that come with the project")
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError, TypeError, flags.Error) as error:
        raise ConfigError(_unknown_field(path, argument, argv) or str(error).splitlines()[0]) from error
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # the libraries report every file they touch
    return rest


def given() -> ConfigDict | None:
    """The parsed config as it is, None where --config was not given."""
    return _CONFIG.value


def config(reference: ConfigDict) -> ConfigDict:
    """The parsed config.

    Args:
      reference: has every field there is.

    Raises:
      ConfigError: --config was not given, or the file's fields are not those of `reference`.
    """
    if _CONFIG.value is None:
        raise ConfigError("--config is missing, for example --config=configs/quickstart.py")
    mine, known = set(field_names(_CONFIG.value)), set(field_names(reference))
    if mine - known:
        field = min(mine - known)
        raise ConfigError(f"config.{field} does not exist: {_nearest_field(field, known)}")
    if known - mine:
        raise ConfigError(f"config.{min(known - mine)} is missing; let the config start from configs/default.py")
    return _CONFIG.value


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    """All fields as "part.field"."""
    names = []
    for key, value in config.items():
        names += field_names(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
    return names


def _config_path(argv: list[str]) -> tuple[str | None, list[str]]:
    """(file, what its get_config is given) of --config=FILE or --config=FILE:ARGUMENT; (None, []) without the flag."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word in ("--config", "-config") or word.startswith(("--config=", "-config=")):
            path, *argument = (word.split("=", 1)[1] if "=" in word else following).split(":", 1)
            return path, argument
    return None, []


def _unknown_field(path: str | None, argument: list[str], argv: list[str]) -> str | None:
    """Names the first --config.FIELD of argv, or the first field set by the file, that does not exist."""
    fields = [word.split("=")[0].lstrip("-").removeprefix("config.") for word in argv if word.startswith("--config.")]
    if path is None:
        return "--config.FIELD needs --config=FILE" if fields else None
    try:
        config = runpy.run_path(path)["get_config"](*argument)
    except (AttributeError, KeyError, TypeError) as error:
        return f"{path}: " + str(error).replace("\\n", " ").strip("'\"")
    return next(filter(None, (unknown_field(field, config) for field in fields)), None)


def unknown_field(field: str, config: ConfigDict) -> str | None:
    """What is wrong with a field ("part.field") that does not exist in `config`; None for one that does."""
    known = field_names(config)
    return None if field in known else f"config.{field} does not exist: {_nearest_field(field, known)}"


def _nearest_field(field: str, known) -> str:
    """Prefers a field of the same name in another part, then a similar one in the same part."""
    part, _, name = field.rpartition(".")
    same_name = sorted(other for other in known if other.rpartition(".")[2] == name)
    if same_name:
        nearer = [other for other in same_name if other.startswith(f"{part}.")] or same_name
        return f"did you mean {' or '.join(map(repr, nearer))}?"
    siblings = [other for other in known if other.rpartition(".")[0] == part]
    return nearest(field, sorted(siblings or {other.split(".")[0] for other in known}))
