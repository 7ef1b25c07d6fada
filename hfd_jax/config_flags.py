"""The --config flag of main.py and of the tools that train: absl and ml_collections, with errors in one line."""

import os
import runpy

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from hfd_jax.errors import ConfigError, nearest

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with the experiment's config.", lock_config=True)


def parse(argv: list[str]) -> list[str]:
    """Parses absl's flags and every --config.FIELD=VALUE; returns what is left of argv.

    Raises:
      ConfigError: a config file that is missing, a misspelt field, a value of the wrong type.
    """
    for word in argv:
        path = word.removeprefix("--config=")
        if path != word and not os.path.isfile(path.split(":")[0]):
            raise ConfigError(f"--config={path}: no such file; configs/ holds those that come with the project")
    try:
        rest = app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(_unknown_field(argv) or str(error)) from error
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # the libraries report every file they touch
    return rest


def _unknown_field(argv: list[str]) -> str | None:
    """Names the first --config.FIELD of argv that the config file does not have."""
    fields = [word.removeprefix("--config.").split("=")[0] for word in argv if word.startswith("--config.")]
    path = next((word.removeprefix("--config=") for word in argv if word.startswith("--config=")), None)
    if path is None:
        return "--config.FIELD needs --config=FILE"
    for field in fields:
        place = runpy.run_path(path)["get_config"]()
        for part in field.split("."):
            if part not in place:
                return f"config.{field} does not exist: {nearest(part, place)}"
            place = place[part]
    return None


def config() -> ConfigDict:
    """The parsed config; ConfigError where --config was not given."""
    if _CONFIG.value is None:
        raise ConfigError("--config is missing, for example --config=configs/quickstart.py")
    return _CONFIG.value
