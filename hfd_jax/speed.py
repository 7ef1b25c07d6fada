"""How fast a restored network predicts."""

import statistics
import time

import jax
import numpy as np

from hfd_jax import steps
from hfd_jax.evaluate import Network
from hfd_jax.parallel import compiler_options

REPETITIONS = 20


def inference_speed(network: Network, batch: int, size: int) -> float:
    """Megapixels a second from stored image to class map, on one device; the median of REPETITIONS calls.

    Args:
      network: whose variables lie on this process's devices.
      batch, size: of the made-up images [batch, size, size, bands].
    """
    bands = len(network.record["bands"][network.sensor])
    images = {
        network.sensor: np.random.default_rng(0).random((batch, size, size, bands), np.float32),
        f"{network.sensor}_valid": np.ones((batch, size, size), bool),
    }
    if network.sensor == "eo":  # `network_input` reads the SAR image, whoever asks
        images |= {"sar": np.zeros((batch, size, size, len(network.record["bands"]["sar"])), np.float32)}
        images |= {"sar_valid": np.ones((batch, size, size), bool)}
    step = jax.jit(
        steps.predict_step(network.model, network.inputs, network.sensor), compiler_options=compiler_options()
    )
    on_device = jax.device_put(images)
    variables = jax.device_put(jax.device_get(network.variables))
    seconds = []
    for _ in range(REPETITIONS + 1):
        start = time.perf_counter()
        step(variables, on_device).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return batch * size**2 / statistics.median(seconds[1:]) / 1e6
