"""SIGTERM and SIGINT end training after the current step, with a checkpoint."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self._signalled = False

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`; with several processes the answer is the same in all of them."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signalled

    def _note(self, number: int, frame: object) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
        name = signal.Signals(number).name
        print(
            f"{name}: stops after this step, with a checkpoint (once more: stops at once)", file=sys.stderr, flush=True
        )
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def watch() -> Iterator[Interruption]:
    """Turns the signals into `Interruption.requested`; the former handlers return afterwards.

    With several processes JAX itself watches for SIGTERM and makes them agree on a step; SIGINT is passed on as one.
    """
    interruption = Interruption()
    numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
    former = {number: signal.signal(number, interruption._note) for number in numbers}
    try:
        yield interruption
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
