"""What every tool does around its work: parse, keep the libraries quiet, show a mendable error as one line."""

import argparse
import sys
from collections.abc import Callable

from absl import flags, logging

from hfd_jax.errors import UserError


def launch(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], None]) -> None:
    """Runs `work` on the parsed arguments; exits with 1 on a UserError, with 130 on Ctrl-C."""
    arguments = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # grain and absl insist, whoever parses
    logging.set_verbosity(logging.WARNING)
    try:
        work(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows the tool's docstring as it is written, with defaults."""
    return argparse.ArgumentParser(description=description, formatter_class=_Formatter)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass
