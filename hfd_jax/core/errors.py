"""Errors that a user can mend, as opposed to bugs: the launcher and the tools show their message alone."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """Names the file or field, what was found and what was expected."""


class ConfigError(UserError, ValueError):
    """A field of the config is wrong."""


class DataError(UserError, ValueError):
    """A file of a data set is missing, damaged, or contradicts its description."""


class WorkdirError(UserError, ValueError):
    """The workdir belongs to another config, or holds no run."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is missing, damaged, or made for something else."""


class DivergedError(UserError, ArithmeticError):
    """Losses or gradients were not finite, step after step."""


STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start the same command again


class StoppedError(BaseException):
    """A run was asked to stop and has saved; the message says what to do.

    Like KeyboardInterrupt it may come at any place, and must not be taken for a fault of what it interrupts.
    """


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Turns what the operating system says while `path` is written (disk full, no permission) into a WorkdirError."""
    try:
        yield
    except OSError as error:
        raise WorkdirError(f"{path}: cannot be written ({error.strerror})") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'? (choices: a, b, x)"; without a close match, the choices alone."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, n=1)
    choices = f"expected one of: {', '.join(known)}"
    return f"did you mean {close[0]!r}? ({choices})" if close else choices
