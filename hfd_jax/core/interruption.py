"""Stops a run on a signal: training after the current step and a checkpoint, everything else at once."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from hfd_jax.core import startup
from hfd_jax.core.errors import StoppedError

# Schedulers and launchers pass a signal on twice within milliseconds; a second Ctrl-C later than this means "at once".
SECOND_CTRL_C = 1.0  # seconds


class Interruption:
    """Records whether the run was asked to stop."""

    def __init__(self) -> None:
        self._since: float | None = None  # when the first signal came
        self._deferred, self._asked = False, 0

    def requested(self) -> bool:
        """Whether to stop; called once per step. With several processes, all of them get the same answer.

        JAX lets the processes agree on the number of a call, so calls are counted over the whole run and not per stage.
        """
        self._asked += 1
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self._since is not None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within this context a signal is only recorded; the caller polls `requested` and saves before it stops."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def note(self, number: int, frame: object) -> None:
        """Signal handler. Raises StoppedError unless the stop is deferred, and KeyboardInterrupt on a second Ctrl-C."""
        first, name = self._since is None, signal.Signals(number).name
        if first:
            self._since = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > SECOND_CTRL_C:
            raise KeyboardInterrupt
        if not self._deferred and jax.process_count() == 1:
            raise StoppedError(f"{name}: stopped; the same command continues the run")
        if first:
            startup.tell(f"{name}: stops after this step, with a checkpoint (a second Ctrl-C stops at once)")
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX watches for it in every process


@contextlib.contextmanager
def watch() -> Iterator[Interruption]:
    """Handles the signals `startup.STOPPING` within a context and restores the previous handlers afterwards.

    With several processes JAX itself watches for SIGTERM, so the other signals are forwarded as SIGTERM.
    """
    interruption = Interruption()
    with startup.handled(interruption.note, but=(signal.SIGTERM,) if jax.process_count() > 1 else ()):
        yield interruption
