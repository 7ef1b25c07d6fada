"""Launches a run: python main.py --config=configs/quickstart.py --workdir=runs/quickstart [--config.field=value]."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with the experiment's config.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, logs and results; a second start resumes there."
)


def parse(argv: list[str]) -> list[str]:
    """Turns the errors of a misspelt or ill-typed config field into one line."""
    try:
        rest = app.parse_flags_with_usage(argv)
        if flags.FLAGS["verbosity"].using_default_value:
            logging.set_verbosity(logging.WARNING)  # the libraries report every file they touch
        return rest
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = " ".join(str(part) for part in error.args).replace("\\n", " ").strip("'\"")
        sys.exit(f"config error: {message}\nconfigs/default.py lists every field.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; fields are set with --config.FIELD=VALUE")
    # Imported late, so that --help and a misspelt field answer at once.
    from hfd_jax import train
    from hfd_jax.errors import UserError

    try:
        train.run(_CONFIG.value, _WORKDIR.value)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
