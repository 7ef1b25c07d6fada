"""Launches a run: python main.py --config=configs/quickstart.py --workdir=runs/quickstart [--config.field=value]."""

import os
import sys
import traceback

from hfd_jax.core import startup

if __name__ == "__main__":
    startup.begin()  # before the imports that take seconds

from absl import app, flags

from hfd_jax.core.errors import STOPPED_EXIT_CODE, StoppedError, UserError
from hfd_jax.train import config_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and results.")
HELP = f"""usage: python main.py --config=FILE --workdir=FOLDER [--config.FIELD=VALUE ...]

Trains the teacher and the students of an experiment and evaluates them.

  --workdir=FOLDER       checkpoints, logs and results; an interrupted run resumes there (required)
{config_flags.HELP}
"""


def parse(argv: list[str]) -> list[str]:
    if {"--help", "-help", "-h"} & set(argv):
        print(HELP, end="")
        sys.exit(0)
    try:
        return config_flags.parse(argv)
    except UserError as error:
        sys.exit(f"error: {error}")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"error: unknown argument {argv[1]!r}; fields are set with --config.FIELD=VALUE")
    if not _WORKDIR.value:
        sys.exit("error: --workdir is missing, for example --workdir=runs/quickstart")
    # Imported late so that --help and a misspelt field are answered at once.
    from configs import default
    from hfd_jax.core import parallel
    from hfd_jax.train import stages

    try:
        config = config_flags.config(default.get_config())
        parallel.join_processes(config.distributed)
        stages.train(config, _WORKDIR.value)
    except UserError as error:
        leave(f"error: {error}", 1)
    except KeyboardInterrupt:
        leave("interrupted", 130)
    except StoppedError as message:
        print(message, file=sys.stderr)
        sys.exit(STOPPED_EXIT_CODE)
    except Exception:  # noqa: BLE001 - the other processes must not wait for this one
        leave(traceback.format_exc(), 1)


def leave(message: str, code: int) -> None:
    """Ends the process. With several processes it skips JAX's shutdown barrier, which the others would never reach."""
    import jax

    print(message, file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
