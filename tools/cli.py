"""What every tool does around its work: parse, keep the libraries quiet, show a mendable error as one line."""

import argparse
import sys
from collections.abc import Callable

from hfd_jax.core.errors import STOPPED_EXIT_CODE, StoppedError, UserError
from hfd_jax.train import config_flags


def launch(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], None],
    with_config: bool = False,
    default_config: Callable[[argparse.Namespace], str] | None = None,
) -> None:
    """Runs `work` on the parsed arguments; exits with 1 on a UserError, with 130 on Ctrl-C, with 75 where training
    was stopped and has saved.

    `with_config`: the tool also takes --config=FILE and --config.FIELD=VALUE (`hfd_jax.config_flags.config()`);
    `default_config` says which FILE where none is given.
    """
    arguments, rest = parser.parse_known_args()
    foreign = [word for word in rest if not (with_config and word.startswith("--config"))]
    if foreign:
        parser.error(f"unknown argument {foreign[0]}")
    try:
        if default_config and not any(word.split("=")[0] == "--config" for word in rest):
            rest.insert(0, f"--config={default_config(arguments)}")
        config_flags.parse([parser.prog, *rest])  # grain and absl insist on parsed flags, whoever parses
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
    """A parser for `python -m tools.NAME` that shows the tool's docstring as it is written, with defaults."""
    return argparse.ArgumentParser(
        prog=f"python -m tools.{name}", description=description, formatter_class=_Formatter, allow_abbrev=False
    )


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)
