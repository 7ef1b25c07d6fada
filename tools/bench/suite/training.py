"""A short training on simulated scenes: teacher, SAR-only student and HFD student, scored on held-out scenes.

The arrays are fed directly, so that no library that reads data is needed.
"""

import concurrent.futures
import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.logs import duration
from hfd_jax.core.parallel import Jit, prefetch
from hfd_jax.data import simulator
from hfd_jax.data.augment import SPATIAL
from hfd_jax.data.facts import Facts, Statistics, StatisticsAccumulator
from hfd_jax.data.simulator import SceneOptions
from hfd_jax.evaluation.metrics import scores
from hfd_jax.evaluation.steps import eval_step
from hfd_jax.models.folding import fold
from hfd_jax.train import build, steps
from hfd_jax.train.networks import NetworkSpec, baseline_spec, student_spec, teacher_spec
from hfd_jax.train.state import init_fn, initial_key
from tools.bench import cases
from tools.bench.suite.settings import Job, Settings, make_config

LABELLED = 8  # one of so many training scenes is labelled: distillation helps where labels are scarce
Arrays = dict[str, np.ndarray]


def train(job: Job) -> dict[str, Any]:
    """Trains the three networks in turn; returns their mIoU on the held-out scenes."""
    settings, say = job.settings, job.say
    start = time.perf_counter()
    count = settings.scenes + settings.held_out
    say(f"simulating {count} scenes")
    arrays = simulated(count, settings.scene_size)
    training, held_out = (
        {k: x[part] for k, x in arrays.items()} for part in (slice(settings.scenes), slice(settings.scenes, None))
    )
    labelled = np.arange(0, settings.scenes, LABELLED)
    training["label"][np.setdiff1d(np.arange(settings.scenes), labelled)] = IGNORE_LABEL
    found: dict[str, Any] = {
        "scenes": settings.scenes,
        "labelled": len(labelled),
        "held_out": settings.held_out,
        "batch": settings.scene_batch,
        "simulation_seconds": time.perf_counter() - start,
        "rows": [],
    }
    config = make_config(
        settings,
        settings.scene_depth,
        settings.scene_width,
        settings.scene_size,
        settings.dtype,
        **{"teacher.steps": settings.training_steps, "student.steps": settings.training_steps},
    )
    facts, teacher = scene_facts(), None
    statistics = measured(facts, training)
    for spec in (teacher_spec(), baseline_spec("sar_only"), student_spec(config)):
        row, variables = train_one(
            settings, config, spec, (facts, statistics), (training, held_out, labelled), teacher, say
        )
        found["rows"].append(row)
        teacher = teacher or variables
    return found


def simulated(count: int, size: int) -> Arrays:
    """Simulates scenes 0 to `count` - 1 as stored arrays [N, H, W, ...]."""
    make = functools.partial(_scene, size=size)
    workers = min(os.cpu_count() or 1, 16, count // 16)  # starting a process takes as long as a few scenes
    if workers > 1:
        with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            scenes = list(pool.map(make, range(count), chunksize=4))
    else:
        scenes = list(map(make, range(count)))
    valid = np.ones((count, size, size), bool)
    stacked = {name: np.stack([scene[k] for scene in scenes]) for k, name in enumerate(("sar", "eo", "label"))}
    return stacked | {"sar_valid": valid, "eo_valid": valid}


def _scene(index: int, size: int) -> tuple[np.ndarray, ...]:
    scene = simulator.simulate(index, SceneOptions(size=size))
    return scene.sar, scene.eo, scene.label


def scene_facts() -> Facts:
    bands = {"sar_bands": simulator.SAR_BANDS, "eo_bands": simulator.EO_BANDS, "eo_dtype": "uint8", "sar_unit": "db"}
    classes = {"class_names": simulator.CLASS_NAMES, "class_colours": simulator.CLASS_COLOURS}
    return Facts("scenes", **bands, **classes, look_axis="x")


def measured(facts: Facts, arrays: Arrays) -> Statistics:
    accumulator = StatisticsAccumulator(facts)
    for sar, eo, label, sar_valid, eo_valid in zip(*(arrays[name] for name in SPATIAL), strict=True):
        accumulator.add(sar, eo, label, sar_valid, eo_valid)
    return accumulator.finish()


def train_one(
    settings: Settings,
    config: ConfigDict,
    spec: NetworkSpec,
    about: tuple[Facts, Statistics],
    data: tuple[Arrays, Arrays, np.ndarray],
    teacher: Any,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], Any]:
    """Trains one network until its last step or the time limit, and scores it.

    Args:
      settings, config: sizes.
      spec: the network.
      about: facts and statistics of the scenes.
      data: (training scenes, held-out scenes, indices of the labelled training scenes).
      teacher: the teacher's variables, if it has been trained.
      say: reports progress.

    Returns:
      (row of results, the network's variables on the device).
    """
    (facts, statistics), (training, held_out, labelled) = about, data
    classes, total, parallel = len(facts.class_names), settings.training_steps, Jit(jax.local_devices()[:1])
    inputs = build.make_inputs(config, facts, statistics)
    setup = steps.Setup(
        model=build.make_model(config, spec, classes),
        sensor=spec.sensor,
        tx=build.make_optimiser(config, total),
        inputs=inputs,
        objective=build.make_objective(config, spec, total, lambda: statistics.class_pixels),
        teacher=cases.frozen_model(config, classes),
        distiller=build.make_distiller(config, spec),
    )
    bands, eo_bands = len(getattr(facts, f"{spec.sensor}_bands")), len(facts.eo_bands)
    init = init_fn(setup.model, setup.tx, bands, setup.distiller, (setup.teacher, eo_bands))
    state = parallel.init(init, initial_key(config.seed, spec.sensor))
    frozen: Any = {}
    if spec.distils:
        frozen = jax.tree.map(lambda x: x.astype(setup.teacher.dtype), fold(setup.teacher, teacher))
    everything = np.arange(len(training["label"]))
    pools = [labelled, np.setdiff1d(everything, labelled)] if spec.distils else [labelled]
    batches = prefetch(endless(training, pools, settings.scene_batch, config.seed), parallel.shard)
    say(f"{spec.title}: compiling")
    step = parallel.train_step(steps.train_step(setup))
    state, _ = jax.block_until_ready(step(state, frozen, next(batches)))
    start, done = time.perf_counter(), 1
    while done < total and time.perf_counter() - start < settings.training_seconds:
        state, metrics = step(state, frozen, next(batches))
        done += 1
        if done % 20 == 0 or done == total:
            loss = float(metrics["loss"])  # waits for the device, so that the time limit holds
        if done % 200 == 0:
            left = (total - done) * (time.perf_counter() - start) / done
            say(f"{spec.title}: step {done} of {total}, loss {loss:.3f}, {duration(left)} left")
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    batches.close()
    matrix = confusion(parallel, eval_step(setup.model, inputs, spec.sensor), state.model_variables, held_out, settings)
    score = scores(matrix, facts.class_names)
    row = {"network": spec.title, "mean_iou": score.mean_iou, "accuracy": score.accuracy, "steps": done, "of": total}
    say(f"{spec.title}: mIoU {score.mean_iou:.3f} after {done} steps")
    return row | {"seconds": seconds, "skipped": int(state.skipped)}, state.model_variables


def endless(arrays: Arrays, pools: list[np.ndarray], per_pool: int, seed: int) -> Iterator[Arrays]:
    """Yields batches of `per_pool` random scenes of each pool, in the form of `training_batches`."""
    rng = np.random.default_rng(seed)
    while True:
        chosen = np.concatenate([rng.choice(pool, per_pool, replace=len(pool) < per_pool) for pool in pools])
        keys = rng.integers(2**31, size=len(chosen), dtype=np.int32)
        yield {k: x[chosen] for k, x in arrays.items()} | {"index": chosen.astype(np.int32), "key": keys}


def confusion(parallel: Jit, step: Callable, variables: Any, arrays: Arrays, settings: Settings) -> np.ndarray:
    """The confusion matrix [K, K] of a network over all scenes; their number is a multiple of the batch."""
    compiled, matrices = parallel.eval_step(step), []
    for first in range(0, settings.held_out, settings.scene_batch):
        batch = {k: x[first : first + settings.scene_batch] for k, x in arrays.items()}
        batch["index"] = np.arange(len(batch["label"]), dtype=np.int32)
        matrices.append(compiled(variables, parallel.shard(batch))["confusion"])
    return sum(np.asarray(matrix, np.int64) for matrix in matrices)
