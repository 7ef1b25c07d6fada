"""SIGTERM and SIGINT end a run: training after the current step, with a checkpoint; everything else at once."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from hfd_jax.core.errors import StoppedError


class Interruption:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self._signalled, self._deferred, self._asked = False, False, 0

    def requested(self) -> bool:
        """Whether to stop, to be asked once per step; with several processes the answer is the same in all of them.

        JAX has them agree on the number of a question: it counts up over the whole run, whatever step is trained.
        """
        self._asked += 1
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self._signalled

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal is only noted: whoever asks `requested` has something to save first."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def note(self, number: int, frame: object) -> None:
        """The handler of the signals."""
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled, name = True, signal.Signals(number).name
        if not self._deferred and jax.process_count() == 1:
            raise StoppedError(f"{name}: stopped; the same command continues")
        print(
            f"{name}: stops after this step, with a checkpoint (once more: stops at once)", file=sys.stderr, flush=True
        )
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX watches for in all processes


@contextlib.contextmanager
def watch() -> Iterator[Interruption]:
    """Handles the signals; the former handlers return afterwards.

    With several processes JAX itself watches for SIGTERM; SIGINT is passed on as one.
    """
    interruption = Interruption()
    numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
    former = {number: signal.signal(number, interruption.note) for number in numbers}
    try:
        yield interruption
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
