"""How fast a restored network predicts."""

import time
from collections.abc import Mapping

import jax
import numpy as np

from hfd_jax.core.parallel import Jit, Pmap
from hfd_jax.evaluation import steps
from hfd_jax.inference.restore import Network

# Inference is timed for so long, seconds, and at least so many times.
TIMED, REPEATED = 1.0, 5


def inference_speed(network: Network, batch: Mapping[str, np.ndarray], parallel: Jit | Pmap) -> float:
    """Megapixels a second from stored values to class map, the input on the devices already; the median.

    Args:
      network: to time.
      batch: its stored images, "sar" or "eo" [B, H, W, bands] with "sar_valid" or "eo_valid" [B, H, W].
      parallel: where the network's variables lie.
    """
    names = (network.sensor, f"{network.sensor}_valid")
    step = parallel.map_step(steps.predict_step(network.model, network.inputs, network.sensor))
    shared = parallel.shard({name: batch[name] for name in names})
    jax.block_until_ready(step(network.variables, shared))
    seconds: list[float] = []
    while sum(seconds) < TIMED or len(seconds) < REPEATED:
        began = time.perf_counter()
        jax.block_until_ready(step(network.variables, shared))
        seconds.append(time.perf_counter() - began)
    return float(batch[names[1]].size / np.median(seconds) / 1e6)


def made_up_images(network: Network, count: int, size: int) -> dict[str, np.ndarray]:
    """`count` images of random numbers, size x size pixels, as `inference_speed` takes them."""
    bands = len(network.record["bands"][network.sensor])
    return {
        network.sensor: np.random.default_rng(0).random((count, size, size, bands), np.float32),
        f"{network.sensor}_valid": np.ones((count, size, size), bool),
    }
