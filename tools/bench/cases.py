"""The training and inference steps, compiled for random arrays, so that timing them needs no data set."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from hfd_jax.core.parallel import Jit
from hfd_jax.data.augment import Augmentation
from hfd_jax.data.facts import BandStatistics
from hfd_jax.data.inputs import InputSpec
from hfd_jax.data.normalise import Normalisation
from hfd_jax.evaluation import steps as evaluation_steps
from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.folding import fold
from hfd_jax.train import build, steps
from hfd_jax.train.networks import NetworkSpec, baseline_spec, student_spec, teacher_spec
from hfd_jax.train.state import init_fn

STEPS = 1000  # length of the learning rate schedule; does not affect the timing


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Shapes of a batch of `batch` pairs of size x size pixels."""

    batch: int
    size: int
    sar_bands: int
    eo_bands: int
    classes: int


@dataclasses.dataclass
class Case:
    """A compiled step to time.

    Attributes:
      call: runs the step once and waits for the result.
      compile_seconds: time of tracing and compilation, with an empty and with a filled compilation cache.
      flops, bytes_accessed: the compiler's estimates over all devices; 0 if not available.
      memory: bytes of the arguments, results and temporaries of the compiled program on one device.
    """

    call: Callable[[], Any]
    compile_seconds: tuple[float, float]
    flops: float
    bytes_accessed: float
    memory: int


def make_batch(shapes: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a random batch in the form that `training_batches` yields."""
    rng = np.random.default_rng(seed)
    values = {
        "sar": lambda shape: rng.normal(-12, 4, shape),
        "eo": lambda shape: rng.integers(1, 255, shape),
        "label": lambda shape: rng.integers(0, shapes.classes, shape),
        "sar_valid": np.ones,
        "eo_valid": np.ones,
        "index": lambda shape: np.arange(*shape),
        "key": lambda shape: rng.integers(2**31, size=shape),
    }
    return {name: values[name](shape).astype(dtype) for name, (shape, dtype) in batch_layout(shapes).items()}


def batch_layout(shapes: Shapes) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns name -> (shape, dtype) of the arrays of a batch."""
    place = (shapes.batch, shapes.size, shapes.size)
    return {
        "sar": ((*place, shapes.sar_bands), np.float32),
        "eo": ((*place, shapes.eo_bands), np.uint8),
        "label": (place, np.uint8),
        "sar_valid": (place, bool),
        "eo_valid": (place, bool),
        "index": ((shapes.batch,), np.int32),
        "key": ((shapes.batch,), np.int32),
    }


def make_inputs(config: ConfigDict, shapes: Shapes) -> InputSpec:
    def statistics(bands, mean, std):
        return BandStatistics((mean,) * bands, (std,) * bands, (mean - 2 * std,) * bands, (mean + 2 * std,) * bands)

    return InputSpec(
        sar=statistics(shapes.sar_bands, -12.0, 4.0),
        eo=statistics(shapes.eo_bands, 128.0, 60.0),
        normalisation=Normalisation(sar_unit="db", **config.normalise.to_dict()),
        augmentation=Augmentation(**config.augment.to_dict()),
        look_axis="x",
    )


def make_setup(config: ConfigDict, shapes: Shapes, network: NetworkSpec) -> steps.Setup:
    """Returns the fixed part of a network's training step, which `training.make_setup` builds from a data set."""
    return steps.Setup(
        model=build.make_model(config, network, shapes.classes),
        sensor=network.sensor,
        tx=build.make_optimiser(config, STEPS),
        inputs=make_inputs(config, shapes),
        objective=build.make_objective(config, network, STEPS, lambda: (1000,) * shapes.classes),
        teacher=frozen_model(config, shapes.classes),
        distiller=build.make_distiller(config, network),
    )


def frozen_model(config: ConfigDict, classes: int) -> SegmentationNetwork:
    model = build.make_model(config, teacher_spec(), classes)
    return model.clone(dtype=build.teacher_dtype(config, model))


NETWORKS = {
    "teacher_step": lambda config: teacher_spec(),
    "sar_step": lambda config: baseline_spec("sar_only"),
    "student_step": student_spec,
}


def training_case(config: ConfigDict, shapes: Shapes, what: str, devices: Sequence[jax.Device]) -> Case:
    """The training step of one of NETWORKS: input, forward, backward, update; for the student also the teacher."""
    setup, parallel = make_setup(config, shapes, NETWORKS[what](config)), Jit(devices)
    state, teacher = initial_arguments(setup, shapes, parallel)
    batch = parallel.shard(make_batch(shapes))
    compiled, seconds = compile_twice(parallel.train_step(steps.train_step(setup)), (state, teacher, batch))
    held = [state]

    def call():
        held[0], metrics = compiled(held[0], teacher, batch)
        jax.block_until_ready((held[0], metrics))
        return metrics

    return Case(call, seconds, *costs(compiled, len(devices)))


def initial_arguments(setup: steps.Setup, shapes: Shapes, parallel: Jit) -> tuple[Any, Any]:
    """Returns (state, teacher's variables, empty if nothing is distilled) for a training step, with random weights."""
    bands = shapes.eo_bands if setup.sensor == "eo" else shapes.sar_bands
    reference = (setup.teacher, shapes.eo_bands)
    state = parallel.init(init_fn(setup.model, setup.tx, bands, setup.distiller, reference), jax.random.key(0))
    if not setup.objective.distils:
        return state, {}
    image = np.zeros((1, 64, 64, shapes.eo_bands), np.float32)
    variables = parallel.init(setup.teacher.init, jax.random.key(1), image)
    return state, jax.tree.map(lambda x: x.astype(setup.teacher.dtype), fold(setup.teacher, variables))


def inference_case(config: ConfigDict, shapes: Shapes, devices: Sequence[jax.Device]) -> Case:
    """The inference step from SAR images to class maps, as in `tools.evaluate`."""
    setup, parallel = make_setup(config, shapes, baseline_spec("sar_only")), Jit(devices)
    image = np.zeros((1, 64, 64, shapes.sar_bands), np.float32)
    variables = parallel.init(setup.model.init, jax.random.key(0), image)
    batch = parallel.shard(make_batch(shapes))
    function = evaluation_steps.predict_step(setup.model, setup.inputs, "sar")
    compiled, seconds = compile_twice(parallel.eval_step(function), (variables, batch))
    return Case(lambda: jax.block_until_ready(compiled(variables, batch)), seconds, *costs(compiled, len(devices)))


def compile_twice(function, arguments) -> tuple[Any, tuple[float, float]]:
    """Returns the compiled function and its (first, second) compilation time; the second uses the filled cache."""
    seconds = []
    for _ in range(2):
        jax.clear_caches()
        start = time.perf_counter()
        compiled = function.lower(*arguments).compile()
        seconds.append(time.perf_counter() - start)
    return compiled, (seconds[0], seconds[1])


def costs(compiled, devices: int) -> tuple[float, float, int]:
    """Returns (operations, bytes accessed, bytes of memory on one device) of a compiled function; 0 if unknown."""
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    held = 0
    if memory is not None:
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        held -= memory.alias_size_in_bytes
    return cost.get("flops", 0.0) * devices, cost.get("bytes accessed", 0.0) * devices, int(held)
