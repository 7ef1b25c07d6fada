"""Inference speed of a restored network."""

import time
from collections.abc import Mapping

import jax
import numpy as np

from hfd_jax.core.parallel import Jit, Pmap
from hfd_jax.evaluation import steps
from hfd_jax.inference.restore import Network

# Minimum duration in seconds and minimum number of repetitions of a measurement.
TIMED, REPEATED = 1.0, 5


def inference_speed(network: Network, batch: Mapping[str, np.ndarray], parallel: Jit | Pmap) -> float:
    """Median megapixels per second from stored values to class map, without the transfer of the input to the devices.

    Args:
      network: network to time.
      batch: stored images, "sar" or "eo" [B, H, W, bands] with "sar_valid" or "eo_valid" [B, H, W].
      parallel: devices that hold the network's variables.
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
    """A batch of `count` random images of size x size pixels for `inference_speed`."""
    bands = len(network.record["bands"][network.sensor])
    return {
        network.sensor: np.random.default_rng(0).random((count, size, size, bands), np.float32),
        f"{network.sensor}_valid": np.ones((count, size, size), bool),
    }
