"""The shared frame of all tools: parses arguments, silences libraries and prints user errors as one line."""

import argparse
import signal
import sys
from collections.abc import Callable

from hfd_jax.core import startup
from hfd_jax.core.errors import STOPPED_EXIT_CODE, StoppedError, UserError
from hfd_jax.train import config_flags


def launch(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], None],
    with_config: bool = False,
    default_config: Callable[[argparse.Namespace], str] | None = None,
) -> None:
    """Parses the arguments and runs a tool.

    Exits with 1 on a UserError, 130 on Ctrl-C, and 75 if a signal stopped it (training: after saving a checkpoint).

    Args:
      parser: parser of the tool's own arguments.
      work: the tool, called with the parsed arguments.
      with_config: also accepts --config=FILE and --config.FIELD=VALUE (`config_flags.config()`).
      default_config: returns the FILE to use without --config.
    """
    if with_config:
        parser.epilog = "config:\n" + config_flags.HELP.replace(" (required)", "" if default_config else " (required)")
    arguments, rest = parser.parse_known_args()
    unknown = [word for word in rest if not (with_config and word.startswith("--config"))]
    if unknown:
        parser.error(f"unknown argument {unknown[0]}")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with startup.handled(startup.stop, but=(signal.SIGINT,)):
            if default_config and not any(word.split("=")[0] == "--config" for word in rest):
                rest.insert(0, f"--config={default_config(arguments)}")
            config_flags.parse([parser.prog, *rest])  # grain and absl require parsed flags
            work(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
    except StoppedError as message:
        print(message, file=sys.stderr)
        sys.exit(STOPPED_EXIT_CODE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m tools.NAME` that shows the tool's docstring verbatim and the defaults."""
    return argparse.ArgumentParser(
        prog=f"python -m tools.{name}", description=description, formatter_class=_Formatter, allow_abbrev=False
    )


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        plain = action.default is None or action.default is False
        return action.help if plain else super()._get_help_string(action)
