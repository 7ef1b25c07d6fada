"""A small network that maps simulated scenes fairly well, created in seconds and saved like a run.

Its kernels are random, its batch statistics are measured and its classifier is fitted. The coarse levels are disabled,
so that its receptive field is about 50 pixels and windows can be small.
"""

import types

import jax
import numpy as np

from configs import default
from hfd_jax.core.checkpoint import Checkpoints
from hfd_jax.core.workdir import Workdir, jsonable, write_json
from hfd_jax.data.catalogue import SceneSource
from hfd_jax.data.facts import StatisticsAccumulator
from hfd_jax.data.inputs import network_input
from hfd_jax.data.simulator import SceneOptions
from hfd_jax.models.layers import BatchNorm
from hfd_jax.train import build
from hfd_jax.train.networks import student_spec, teacher_spec

TILES, COUNT = SceneOptions(size=64, looks=4.0), 24


def write_network(workdir, sensor="sar"):
    """Writes WORKDIR/config.json and WORKDIR/checkpoints/student (teacher if the sensor is EO)."""
    config = default.get_config()
    config.model.update({"width": 8, "align_channels": 32, "detail_channels": (32, 16, 32)})
    config.data.crop = 32
    source = SceneSource(TILES, train=COUNT, validation=0, test=0)
    tiles = [source.read(index) for index in range(COUNT)]
    measured = StatisticsAccumulator(source.facts)
    for tile in tiles:
        measured.add(tile.sar, tile.eo, tile.label, tile.sar_valid, tile.eo_valid)
    inputs = build.make_inputs(config, source.facts, measured.finish())
    batch = {name: np.stack([getattr(tile, name) for tile in tiles]) for name in (sensor, f"{sensor}_valid")}
    image, label = network_input(batch, inputs)[sensor], np.stack([tile.label for tile in tiles])

    run = teacher_spec() if sensor == "eo" else student_spec(config)
    variables = fitted(build.make_model(config, run, len(source.facts.class_names)), image, label)
    record = build.make_record(config, run, types.SimpleNamespace(facts=source.facts, sizes={}), inputs, {})
    folder = Workdir(str(workdir))
    checkpoints = Checkpoints(folder.checkpoints(run.name))
    checkpoints.save(1, {name: {"model": values} for name, values in variables.items()}, record)
    checkpoints.close()
    write_json(folder.config, jsonable(config.to_dict()))


def fitted(network, image, label):
    """Returns {"params", "batch_stats"} fitted to the images."""
    params, statistics = (initial(network, image)[name] for name in ("params", "batch_stats"))
    alignment = params["alignment"]
    alignment["selection_C5"]["select"]["kernel"] *= 0
    for name in ("bn_C4", "bn_C3"):
        alignment[name]["scale"] *= 0
    apply = jax.jit(lambda variables: network.apply(variables, image, True, mutable=["batch_stats"]))
    (_, features), changed = jax.device_get(apply({"params": params, "batch_stats": statistics}))
    share = 1 - BatchNorm.momentum  # weight of this batch in the running statistics
    statistics = jax.tree.map(lambda new, old: old + (new - old) / share, changed["batch_stats"], statistics)
    params["classifier"] = classifier(features["A"], label)
    return {"params": params, "batch_stats": statistics}


def initial(network, image):
    """Initialises the variables in NumPy, since `network.init` takes seconds to compile."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), image[:1]))
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel" and not path[-2].key.startswith("flow"):
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
        return np.full(leaf.shape, name in ("scale", "var"), np.float32)

    return jax.tree.map_with_path(fill, shapes)


def classifier(features, label):
    """Fits the class indicators by least squares, with equal weight for each class.

    The factor 10 gives probabilities that are neither flat nor saturated.
    """
    x = np.concatenate([features.reshape(-1, features.shape[-1]), np.ones((label.size, 1))], 1).astype(np.float64)
    wanted, weight = 10 * np.eye(5)[label.ravel()], 1 / np.bincount(label.ravel())[label.ravel(), None]
    squares = x.T @ (weight * x)
    weights = np.linalg.solve(squares + 0.5 * np.eye(len(squares)), x.T @ (weight * wanted)).astype(np.float32)
    return {"kernel": weights[None, None, :-1], "bias": weights[-1]}
