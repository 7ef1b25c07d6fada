"""Stops a run on SIGTERM or SIGINT: training after the current step and a checkpoint, everything else at once."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from hfd_jax.core.errors import StoppedError


class Interruption:
    """Records whether the run was asked to stop."""

    def __init__(self) -> None:
        self._signalled, self._deferred, self._asked = False, False, 0

    def requested(self) -> bool:
        """Whether to stop; called once per step. With several processes, all of them get the same answer.

        JAX lets the processes agree on the number of a call, so calls are counted over the whole run and not per stage.
        """
        self._asked += 1
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self._signalled

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within this context a signal is only recorded; the caller polls `requested` and saves before it stops."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def note(self, number: int, frame: object) -> None:
        """Signal handler. Raises StoppedError, or KeyboardInterrupt on the second signal."""
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled, name = True, signal.Signals(number).name
        if not self._deferred and jax.process_count() == 1:
            raise StoppedError(f"{name}: stopped; the same command continues the run")
        print(
            f"{name}: stops after this step, with a checkpoint (send it again to stop at once)",
            file=sys.stderr,
            flush=True,
        )
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX watches for it in every process


@contextlib.contextmanager
def watch() -> Iterator[Interruption]:
    """Handles the signals within a context and restores the previous handlers afterwards.

    With several processes JAX itself watches for SIGTERM, so SIGINT is forwarded as SIGTERM.
    """
    interruption = Interruption()
    numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, interruption.note) for number in numbers}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
