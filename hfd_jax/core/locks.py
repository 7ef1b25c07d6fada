"""Locks a file, on file systems that have locks."""

import contextlib
import fcntl
from collections.abc import Callable, Iterator

from absl import logging

from hfd_jax.core.errors import writing


@contextlib.contextmanager
def locked(path: str, taken: Callable[[], None]) -> Iterator[None]:
    """Holds a lock file; the lock also ends with the process. The folder must exist.

    Without locks (Lustre without -o flock, some NFS) it warns and goes on.

    Args:
      path: the lock file; created if missing.
      taken: called if another process holds the lock. It raises an error, or else the lock is waited for.

    Raises:
      WorkdirError: the file cannot be written.
    """
    with writing(path):
        file = open(path, "a")  # noqa: SIM115 - closed below, outside `writing`
    with file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                taken()
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logging.warning("%s: file system without locks (%s); start one process at a time", path, error.strerror)
        yield
