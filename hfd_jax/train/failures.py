"""Explains failures of the machine during training: memory that does not suffice, a reading process that was killed."""

import contextlib
import re
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from hfd_jax.core.errors import MachineError


@contextlib.contextmanager
def explained(config: ConfigDict) -> Iterator[None]:
    """Turns failures of the machine into a MachineError that says what to lower; other errors pass."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        explanation = _explanation(config, error)
        if explanation is None:
            raise
        raise MachineError(f"{explanation}. Checkpoints saved so far are kept") from error


def _explanation(config: ConfigDict, error: Exception) -> str | None:
    text = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        asked = re.search(r"(\d+) bytes", text)
        size = f" ({int(asked[1]) / 2**30:.2f} GiB could not be allocated)" if asked else ""
        data = config.data
        return (
            f"out of memory{size}: a step holds {data.batch_size} crops of {data.crop} x {data.crop} pixels in "
            f"{config.dtype} on {jax.device_count()} device(s), an evaluation {config.eval.batch_size} windows. "
            "--config.train.remat=True needs less and continues this run, and so does a smaller config.eval.batch_size "
            "or eval.window; a smaller config.data.batch_size or data.crop needs a new --workdir"
        )
    if "terminated unexpectedly" in text:
        return (
            f"a process that reads data died, possibly killed for lack of memory: {config.data.workers} were reading "
            "(config.data.workers). The same command continues; fewer workers need less memory"
        )
    return None
