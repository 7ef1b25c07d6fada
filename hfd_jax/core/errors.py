"""Errors that a user can fix, as opposed to bugs: the launcher and the tools print only their message."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """Base class; the message names the file or field, what was found and what was expected."""


class ConfigError(UserError, ValueError):
    """A field of the config is invalid."""


class DataError(UserError, ValueError):
    """A file of a data set is missing, damaged, or contradicts its description."""


class WorkdirError(UserError, ValueError):
    """A workdir was created with another config or holds no run, or a file cannot be written."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is missing, damaged or holds a different network."""


class DivergedError(UserError, ArithmeticError):
    """Losses or gradients were not finite for many consecutive steps."""


class MachineError(UserError, RuntimeError):
    """The machine lacks memory, or killed a process."""


class WorkerDiedError(MachineError):
    """The system killed a worker process; takes what became of the work."""

    def __init__(self, outcome: str):
        super().__init__(f"a worker process died, perhaps out of memory: try fewer --workers ({outcome})")


STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start the same command again


class StoppedError(BaseException):
    """A signal stopped the run; the message tells how to continue.

    Like KeyboardInterrupt, it may be raised anywhere and does not derive from Exception, so that no handler mistakes it
    for a failure of the code it interrupts.
    """


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Turns an OSError raised while `path` is written (disk full, no permission) into a WorkdirError."""
    try:
        yield
    except OSError as error:
        raise WorkdirError(f"{path}: cannot be written ({error.strerror or error})") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "did you mean 'x'? (expected one of: a, b, x)", or only the choices without a close match."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, n=1)
    choices = f"expected one of: {', '.join(known)}"
    return f"did you mean {close[0]!r}? ({choices})" if close else choices
