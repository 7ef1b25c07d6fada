"""What a process does before its slow imports: it makes its streams safe and takes over the signals that stop it.

This module imports nothing slow, so that the launcher and the tools can call it in their first lines.
"""

import contextlib
import io
import locale
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from hfd_jax.core.errors import STOPPED_EXIT_CODE, StoppedError

# What ends a job: Ctrl-C, a scheduler (SIGUSR1 and SIGUSR2 as warnings, SIGXCPU at a time limit), a lost terminal.
STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)
Handler = Callable[[int, FrameType | None], object]


def begin() -> None:
    """Prepares the process; call it from a program's first lines only, since it changes the process as a whole."""
    handle(leave)
    use_utf8()
    protect_streams()


def use_utf8() -> None:
    """Starts the interpreter again in its UTF-8 mode if the locale has another encoding.

    Names of files and texts are UTF-8, whatever the locale; GDAL assumes it, too.
    """
    encodings = {sys.getfilesystemencoding().lower(), locale.getencoding().lower()}
    if not sys.flags.utf8_mode and encodings != {"utf-8"} and sys.executable:
        os.environ["PYTHONUTF8"] = "1"  # also for worker processes
        os.execv(sys.executable, sys.orig_argv)


def handle(handler: Handler, but: tuple[int, ...] = ()) -> dict[int, object]:
    """Handles the signals STOPPING except `but`; returns the previous handlers. A SIGHUP ignored by nohup stays so."""
    numbers = [number for number in STOPPING if number not in but]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    return {number: signal.signal(number, handler) for number in numbers}


@contextlib.contextmanager
def handled(handler: Handler, but: tuple[int, ...] = ()) -> Iterator[None]:
    """Handles signals as `handle` within a context and restores the previous handlers afterwards."""
    previous = handle(handler, but)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def leave(number: int, frame: FrameType | None) -> None:
    """Signal handler that ends the process where nothing needs to be saved or cleaned up, such as during imports."""
    tell(f"{signal.Signals(number).name}: stopped; the same command continues")
    os._exit(STOPPED_EXIT_CODE)


def stop(number: int, frame: FrameType | None) -> None:
    """Signal handler that raises StoppedError."""
    raise StoppedError(f"{signal.Signals(number).name}: stopped; start the same command again")


def ignore_in_worker() -> None:
    """Ignores, in a worker process, the signals that a terminal or a scheduler sends to all processes of a job.

    The main process decides what they mean. SIGTERM still ends the worker: it is how a pool ends its workers.
    """
    for number in STOPPING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


def tell(text: str) -> None:
    """Writes a line to stderr; unlike print, also from a signal handler that interrupts a print."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))


def protect_streams() -> None:
    """Makes stdout and stderr safe to print to: closed, on a full disk, a broken pipe, or unable to show a character.

    What cannot be written is dropped; characters that the encoding lacks are written as their codes. Closed descriptors
    are opened on the null device; otherwise the next file that is opened would receive what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number, this one
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - stays open
    sys.stdout, sys.stderr = (_protected(stream, k) for k, stream in ((1, sys.stdout), (2, sys.stderr)))


def _protected(stream: io.TextIOWrapper | None, number: int) -> io.TextIOWrapper:
    raw = io.BufferedWriter(_Dropping(number))
    encoding = stream.encoding if stream else "utf-8"
    return io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True)


class _Dropping(io.RawIOBase):
    """A file descriptor that drops what it cannot write."""

    def __init__(self, number: int):
        self._number = number

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data) -> int:
        try:
            return os.write(self._number, data)
        except OSError:
            return len(data)
