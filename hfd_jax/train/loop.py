"""The training loop of one network: step, log, validate, save."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from hfd_jax.core import logs
from hfd_jax.core.errors import StoppedError
from hfd_jax.core.interruption import Interruption
from hfd_jax.core.logs import say
from hfd_jax.core.parallel import prefetch
from hfd_jax.data.pipeline import batch_refs, training_batches
from hfd_jax.evaluation import figures
from hfd_jax.evaluation.evaluator import Evaluator, drawings
from hfd_jax.evaluation.metrics import Scores
from hfd_jax.inference.restore import Network
from hfd_jax.train import build, reading, steps, teacher
from hfd_jax.train.networks import NetworkSpec
from hfd_jax.train.run import Run
from hfd_jax.train.state import TrainState
from hfd_jax.train.training import Training, initial_state, is_complete, make_training
from hfd_jax.train.training_log import TrainingLog


def train_network(
    run: Run, spec: NetworkSpec, interruption: Interruption, teacher_scores: Scores | None = None
) -> bool:
    """Trains one network to its last step, from its latest intact checkpoint if there is one.

    Args:
      run, spec: the run and the network.
      interruption: tells when to stop early.
      teacher_scores: the teacher's scores, if there is one, for the checkpoints' record.

    Returns:
      False if the network was already trained.
    """
    config, frozen = run.config, None
    if spec.needs_teacher:
        frozen = teacher.load_teacher(config, run.workdir, run.dataset.facts, spec, run.parallel)
    training = make_training(run, spec, frozen, teacher_scores)
    if is_complete(training):
        say(f"{spec.title}: already trained for {training.total} steps")
        training.checkpoints.close()
        return False
    state, start, unlogged, origin = initial_state(run, training)
    training = dataclasses.replace(training, record=training.record | {"pretrained": origin})
    pools, setup = training.pools, training.setup
    tiles = " + ".join(f"{len(pool.refs)} {'labelled' if pool.refs[0].labelled else 'unlabelled'}" for pool in pools)
    say(f"{spec.title}: {tiles} tiles, steps {start} to {training.total}")
    batches = training_batches(
        run.dataset,
        pools,
        reading.make_reading(config, run.dataset.facts),
        crop=config.data.crop,
        seed=config.seed,
        start_step=start,
        process=(jax.process_index(), jax.process_count()),
    )
    variables = teacher.frozen_variables(frozen, setup.teacher.dtype, run.parallel) if setup.objective.distils else {}
    with contextlib.closing(prefetch(batches, run.parallel.shard)) as batches:
        loop(run, training, interruption, state, run.parallel.replicate(variables), batches, start, unlogged)
    return True


def loop(
    run: Run,
    training: Training,
    interruption: Interruption,
    state: TrainState,
    frozen: Any,
    batches: Iterator[dict],
    start: int,
    unlogged: list[dict[str, float]],
) -> None:
    """Runs the steps after `start`, and logs, validates and saves on schedule.

    Args:
      run, training: the run and the network.
      interruption: tells when to stop early.
      state: the state to begin with.
      frozen: the teacher's variables; empty if nothing is distilled.
      batches: the batches from step start + 1 on.
      start: steps taken.
      unlogged: metrics of the last of them that no line of the log has yet.

    Raises:
      StoppedError: a signal came; the state is saved.
      DivergedError: too many consecutive steps had a loss or gradient that was not finite; earlier checkpoints stay.
    """
    settings, parallel = run.config.train, run.parallel
    train_step = parallel.train_step(steps.train_step(training.setup))
    validates_every = run.validates_every
    evaluator = run.evaluator("validation") if validates_every else None
    stop = False
    log = make_log(run, training, start, unlogged)
    with interruption.deferred(), contextlib.closing(training.checkpoints), contextlib.closing(log):
        for step in range(start + 1, training.total + 1):
            batch = next(batches)
            with jax.profiler.StepTraceAnnotation(training.spec.name, step_num=step):
                state, metrics = train_step(state, frozen, batch)
            log.add(step, metrics)
            last, stop, score = step == training.total, interruption.requested(), None
            if last or step % settings.log_every == 0 or step == 1:
                log.write(step)
            if evaluator and (last or step % validates_every == 0):
                scores = evaluate(training.setup, state, evaluator)
                score = scores.mean_iou
                log.validated(step, scores.mean_iou, scores.accuracy)
                log.pictures(step, functools.partial(pictures, run, training, state, evaluator, scores))
            # A checkpoint among skipped steps would push out one that is surely good.
            if last or stop or (step % settings.checkpoint_every == 0 and not log.skipped_last()):
                record = training.record | {"unlogged": log.unlogged()}
                training.checkpoints.save(step, parallel.single(state), record, score)
            if stop:
                break
    if stop or interruption.requested():
        raise StoppedError(
            f"stopped after step {step} of {training.spec.name}, which is saved; the same command continues"
        )


def make_log(run: Run, training: Training, start: int, unlogged: list) -> TrainingLog:
    """The log of a training that continues at `start`; entries of later steps are dropped."""
    name, config = training.spec.name, run.config
    run.log.rewind(name, start)
    return TrainingLog(
        name,
        run.log,
        logs.Summaries(f"{run.workdir.summaries}/{name}"),
        logs.Progress(training.total, start),
        build.make_schedule(config, training.total, student=training.spec.sensor == "sar"),
        lambda step: tile_ids(run, training, step),
        config.train.max_bad_steps,
        training.checkpoints.whereabouts,
        unlogged,
        logs.MetricsLog(run.workdir.timing),
    )


def tile_ids(run: Run, training: Training, step: int) -> list[str]:
    """Ids of the tiles in the batch of a step, as the data set calls them."""
    refs = batch_refs(training.pools, seed=run.config.seed, step=step - 1)
    return run.dataset.tile_ids([(ref.split, ref.index) for ref in refs])


def evaluate(setup: steps.Setup, state: TrainState, evaluator: Evaluator) -> Scores:
    return evaluator(setup.model, setup.inputs, setup.sensor, state.model_variables)


def pictures(
    run: Run, training: Training, state: TrainState, evaluator: Evaluator, scores: Scores
) -> dict[str, np.ndarray]:
    """Some tiles with their class maps, and the confusion matrix, as images."""
    setup, name = training.setup, training.spec.name
    network = Network(training.record, setup.model, setup.inputs, state.model_variables)
    drawn = drawings(evaluator, {name: network}, {name: scores}, run.config.eval.panels)
    return {f"{what}_{evaluator.split}": figures.pixels(figure) for what, figure in drawn.items()}
