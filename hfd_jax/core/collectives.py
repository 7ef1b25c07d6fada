"""Sums and gathers over all devices of a step, whichever way it is compiled.

Under `jax.jit` a batch is one array, however many devices hold it, and these functions change nothing. Under `jax.pmap`
each device sees its own part, and they communicate over the axis that `core.parallel.Pmap` binds. Layers, losses and
distillation methods call them without knowing which of the two runs.
"""

import jax
import jax.numpy as jnp

AXIS = "data"


def split() -> bool:
    """Whether the code being traced sees one device's part of a batch."""
    try:
        jax.lax.axis_size(AXIS)
    except NameError:
        return False
    return True


def global_sum(x):
    """Sums a tree of arrays over the devices."""
    return jax.lax.psum(x, AXIS) if split() else x


def global_mean(x):
    """Averages a tree of arrays over the devices."""
    return jax.lax.pmean(x, AXIS) if split() else x


def gathered(x):
    """Concatenates the samples of all devices in device order: [B, ...] -> [devices * B, ...], for a tree of arrays."""
    return jax.lax.all_gather(x, AXIS, tiled=True) if split() else x


def sample_offset(batch: int):
    """Position of this device's first sample in the whole batch, if every device holds `batch` samples."""
    return jax.lax.axis_index(AXIS) * batch if split() else jnp.int32(0)
