"""What a machine lacks is explained; other errors pass unchanged."""

import jax
import pytest

from configs import default
from hfd_jax.core.errors import MachineError
from hfd_jax.train.failures import explained


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 30601641984 bytes."),
            r"out of memory \(28.50 GiB could not be allocated\): a step holds 16 crops of 64 x 64 pixels in float32.*"
            r"train.remat=True.*data.batch_size or data.crop needs a new --workdir. Checkpoints saved so far are kept",
        ),
        (MemoryError(), r"out of memory: a step holds 16 crops"),
        (
            RuntimeError("Worker process was terminated unexpectedly with exit code -9"),
            r"a process that reads data died.*\(config.data.workers\). The same command continues",
        ),
    ],
)
def test_failures_of_the_machine_say_what_to_lower(error, message):
    with pytest.raises(MachineError, match=message), explained(default.get_config()):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("out of memory"), KeyboardInterrupt()])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, explained(default.get_config()):
        raise error
    assert caught.value is error
