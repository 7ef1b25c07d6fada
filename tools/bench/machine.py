"""Measures the machine's peak performance, the reference for the steps."""

import platform

import jax
import jax.numpy as jnp

from tools.bench.timing import interleaved


def describe(devices: int) -> dict[str, str | int]:
    """Returns device, number of devices and versions."""
    return {
        "device": jax.devices()[0].device_kind or platform.machine(),
        "backend": jax.default_backend(),
        "devices": devices,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def peaks(dtype: str, seconds: float = 3.0) -> dict[str, float]:
    """Measures the peak of one device with a square matrix multiplication and a copy larger than any cache.

    Returns:
      {"flops": operations per second in `dtype`, "bandwidth": bytes read and written per second}.
    """
    edge, count = (2048, 1 << 26) if jax.default_backend() == "cpu" else (8192, 1 << 29)
    matrix = jax.random.normal(jax.random.key(0), (edge, edge), jnp.dtype(dtype))
    row = jnp.ones(count, jnp.float32)
    multiply, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    calls = {
        "matmul": lambda: multiply(matrix).block_until_ready(),
        "copy": lambda: copy(row).block_until_ready(),
    }
    best = {name: min(timing.seconds) for name, timing in interleaved(calls, seconds, rounds=3).items()}
    return {"flops": 2 * edge**3 / best["matmul"], "bandwidth": 2 * row.nbytes / best["copy"]}
