"""The platform that a function is compiled for, where the CPU and accelerators want different formulations.

What pays on the CPU can be slow on a GPU or TPU, and the other way round. A layer with two formulations asks `on_cpu`
while it is traced; both compute the same up to rounding.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_PLATFORM: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Sets the platform of the functions that are traced within the context; elsewhere it is JAX's default."""
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def on_cpu() -> bool:
    """Whether the function that is being traced will run on a CPU."""
    return (_PLATFORM.get() or jax.default_backend()) == "cpu"
