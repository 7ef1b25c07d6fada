"""What a signal does, depending on whether training defers it; without a run."""

import os
import signal

import pytest

from hfd_jax.core import interruption, startup
from hfd_jax.core.errors import StoppedError
from hfd_jax.core.interruption import watch


@pytest.mark.parametrize("number", startup.STOPPING)
def test_training_defers_every_signal_also_one_that_is_sent_twice(number, capfd):
    before = signal.getsignal(number)
    with watch() as interrupted, interrupted.deferred():
        assert not interrupted.requested()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert interrupted.requested()
    assert capfd.readouterr().err.count(f"{signal.Signals(number).name}: stops after this step") == 1
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    with watch() as interrupted, interrupted.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 5
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_training_every_signal_stops():
    with watch():
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            with pytest.raises(StoppedError, match="stopped; the same command continues the run"):
                os.kill(os.getpid(), number)
