"""The two-stage run: train the EO teacher, freeze it, train the SAR student from it, evaluate both."""

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from hfd_jax import assembly, context, figures, pretrained, reporting, steps, teacher
from hfd_jax.assembly import Run
from hfd_jax.checkpoint import Checkpoints, DamagedError
from hfd_jax.context import Context
from hfd_jax.data import inputs
from hfd_jax.data.pipeline import Ref, batch_refs, training_batches
from hfd_jax.distill import cache
from hfd_jax.errors import CheckpointError, StoppedError
from hfd_jax.evaluate import Evaluator, Network, check_fits, drawings, evaluate_workdir, load_network, table
from hfd_jax.interruption import Interruption, watch
from hfd_jax.journal import Journal
from hfd_jax.metrics import Scores
from hfd_jax.parallel import prefetch
from hfd_jax.reporting import say
from hfd_jax.state import TrainState, init_fn, initial_key, student_from_teacher
from hfd_jax.workdir import differences, package_versions


def run(config: ConfigDict, root: str) -> dict[str, Scores]:
    """Runs config.stage in the workdir `root`, resuming what is there.

    Returns:
      title -> scores on config.eval.split, for every network of the stage and its teacher.

    Raises:
      UserError: before anything is computed or overwritten.
      StoppedError: a signal came; all is saved, and the same call continues.
    """
    with watch() as interruption, context.prepared(config, root) as shared:
        return run_stages(shared, interruption)


def run_stages(shared: Context, interruption: Interruption) -> dict[str, Scores]:
    """Trains the networks of config.stage in their order, each student after its teacher; then evaluates them."""
    config = shared.config
    runs, known, trained = assembly.stages(config), {}, False
    for network in runs:
        if network.needs_teacher and not known:
            known["teacher"] = score_teacher(shared)
        trained |= train_network(shared, network, interruption, known.get("teacher"))
    names = [network.name for network in runs]
    if "teacher" not in names and any(network.needs_teacher for network in runs):
        names.insert(0, "teacher")
        say(f"teacher: from {shared.checkpoint('teacher')[0]}")
    split = config.eval.split
    say(f"evaluating on split {split!r} ({shared.dataset.size(split)} tiles)")
    # Importing TensorFlow takes seconds: not for pictures that are there.
    summaries = os.path.join(shared.workdir.summaries, "evaluation")
    results = evaluate_workdir(
        shared.workdir,
        {name: shared.checkpoint(name) for name in names},
        shared.evaluator(split),
        shared.parallel,
        config.eval.panels,
        known=known,
        summaries=summaries if trained or not os.path.exists(summaries) else "",
    )
    say(table(results))
    say(f"written to {shared.workdir.root}: evaluation.json, figures/panel_{split}.png, figures/confusion_{split}.png")
    return results


@dataclasses.dataclass(frozen=True)
class Training:
    """What the loop works on.

    Attributes:
      network: which one is trained.
      setup: of its step.
      checkpoints, record: where it is saved, and what each checkpoint says of itself.
      total: its last step.
      pools: (tiles, share of every batch).
    """

    network: Run
    setup: steps.Setup
    checkpoints: Checkpoints
    record: dict[str, Any]
    total: int
    pools: list[tuple[list[Ref], float]]


def score_teacher(shared: Context) -> Scores:
    """Evaluates the teacher before its first student is trained: a poor one is seen at once."""
    split = shared.config.eval.split
    network = load_network(*shared.checkpoint("teacher"), shared.parallel)
    check_fits(network.record, shared.dataset.facts)
    scores = shared.evaluator(split)(network.model, network.inputs, network.sensor, network.variables)
    say(f"{network.record['title']}: mIoU {scores.mean_iou:.4f} on split {split!r}, before it teaches")
    return scores


def train_network(
    shared: Context, network: Run, interruption: Interruption, teacher_scores: Scores | None = None
) -> bool:
    """Trains one network to its last step, from its latest good checkpoint if there is one; False: it is there.

    Args:
      shared, network: the run and which network.
      interruption: whether to stop early.
      teacher_scores: of its teacher, if it has one; stands in its checkpoints' records.
    """
    config = shared.config
    total = config.teacher.steps if network.name == "teacher" else config.student.steps
    frozen = None
    if network.needs_teacher:
        frozen = teacher.load_teacher(config, shared.workdir, shared.dataset.facts, network, shared.parallel)
    setup = make_setup(shared, network, frozen, total)
    record = assembly.make_record(config, network, shared.dataset, setup.inputs, package_versions())
    record["teacher"] = teacher.identity(frozen)
    if teacher_scores:
        record["teacher_score"] = {"split": config.eval.split, "mean_iou": teacher_scores.mean_iou}
    checkpoints = Checkpoints(shared.workdir.checkpoints(network.name), config.train.keep_checkpoints)
    pools = assembly.make_pools(config, shared.dataset, network)
    training = Training(network, setup, checkpoints, record, total, pools)
    if is_complete(training):
        say(f"{network.title}: already trained for {total} steps")
        checkpoints.close()
        return False
    state, start, unlogged, origin = initial_state(shared, training, frozen)
    training = dataclasses.replace(training, record=record | {"pretrained": origin})
    tiles = " + ".join(f"{len(refs)} {'labelled' if refs[0].labelled else 'unlabelled'}" for refs, _ in pools)
    say(f"{network.title}: {tiles} tiles, steps {start} to {total}")
    batches = training_batches(
        shared.dataset,
        pools,
        dataclasses.replace(assembly.make_reading(config, shared.dataset.facts), optical=not setup.cached),
        crop=config.data.crop,
        batch_size=config.data.batch_size,
        seed=config.seed,
        start_step=start,
        process=(jax.process_index(), jax.process_count()),
    )
    variables = shared.parallel.replicate({})
    if setup.cached:
        batches = with_cached_features(shared, training, frozen, batches, start)
    elif setup.objective.distils:
        variables = shared.parallel.replicate(teacher.frozen_variables(frozen, setup.teacher.dtype, shared.parallel))
    with contextlib.closing(prefetch(batches, shared.parallel.shard)) as batches:
        loop(shared, training, interruption, state, variables, batches, start, unlogged)
    return True


def with_cached_features(
    shared: Context, training: Training, frozen: Network, batches: Iterator[dict], start: int
) -> Iterator[dict]:
    """The batches with the teacher's stored features, which are computed before if they are not there."""
    config, setup, dataset = shared.config, training.setup, shared.dataset
    splits = sorted({ref.split for refs, _ in training.pools for ref in refs})
    variables = jax.device_put(teacher.frozen_variables(frozen, setup.teacher.dtype, shared.parallel))
    compiled = jax.jit(functools.partial(steps.variant_features, setup))
    features = cache.prepare(
        shared.workdir.teacher_features,
        assembly.cache_identity(config, setup, training.record, dataset),
        dataset,
        splits,
        assembly.make_reading(config, dataset.facts),
        config.data.crop,
        lambda variant, batch: compiled(variant, variables, batch),
        inputs.variants(setup.inputs),
    )
    share = config.data.batch_size // jax.process_count()
    mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    refs = (
        batch_refs(training.pools, batch_size=config.data.batch_size, seed=config.seed, step=step)[mine]
        for step in itertools.count(start)
    )
    draw = jax.jit(functools.partial(inputs.drawn_variant, spec=setup.inputs))

    def drawn(key):
        # Not on the device: the answer would come after all the steps that wait there.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return draw(key)

    return cache.joined(batches, refs, features, drawn)


def loop(
    shared: Context,
    training: Training,
    interruption: Interruption,
    state: TrainState,
    frozen: Any,
    batches: Iterator[dict],
    start: int,
    unlogged: list[dict[str, float]],
) -> None:
    """step, log, evaluate, save.

    Args:
      shared, training: the run and the network.
      interruption: whether to stop early.
      state: to begin with.
      frozen: the teacher's variables; empty where nothing is distilled.
      batches: of the steps from start + 1.
      start: steps taken.
      unlogged: metrics of the last of them that no line of the log has yet.

    Raises:
      StoppedError: a signal came; the state is saved.
      DivergedError: too many steps in a row whose loss or gradient was not finite; earlier checkpoints stay.
    """
    settings, parallel = shared.config.train, shared.parallel
    train_step = parallel.train_step(steps.train_step(training.setup))
    evaluator = shared.evaluator("validation") if settings.eval_every else None
    stop = False
    journal = make_journal(shared, training, start, unlogged)
    with interruption.deferred(), contextlib.closing(training.checkpoints), contextlib.closing(journal):
        for step in range(start + 1, training.total + 1):
            state, metrics = train_step(state, frozen, next(batches))
            journal.add(step, metrics)
            last, stop, score = step == training.total, interruption.requested(), None
            if last or step % settings.log_every == 0 or step == 1:
                journal.write(step)
            if evaluator and (last or step % settings.eval_every == 0):
                scores = evaluate(training.setup, state, evaluator)
                score = scores.mean_iou
                journal.validated(step, scores.mean_iou, scores.accuracy)
                journal.pictures(step, functools.partial(pictures, shared, training, state, evaluator, scores))
            # A checkpoint among skipped steps would push out one that is surely good.
            if last or stop or (step % settings.checkpoint_every == 0 and not journal.skipped_last()):
                record = training.record | {"unlogged": journal.unlogged()}
                training.checkpoints.save(step, parallel.single(state), record, score)
            if stop:
                break
    if stop or interruption.requested():
        raise StoppedError(
            f"stopped after step {step} of {training.network.name}, which is saved; the same command continues"
        )


def make_journal(shared: Context, training: Training, start: int, unlogged: list) -> Journal:
    """Of a run that begins at `start`; what the log already says of later steps is dropped."""
    name, config = training.network.name, shared.config
    shared.log.rewind(name, start)
    return Journal(
        name,
        shared.log,
        reporting.Summaries(f"{shared.workdir.summaries}/{name}"),
        reporting.Progress(training.total, start),
        assembly.make_schedule(config, training.total),
        lambda step: tiles_of(shared, training, step),
        config.train.max_bad_steps,
        training.checkpoints.whereabouts,
        unlogged,
        reporting.MetricsLog(shared.workdir.timing),
    )


def tiles_of(shared: Context, training: Training, step: int) -> list[str]:
    """Ids of the tiles in the batch of a step, as the data set calls them."""
    config = shared.config
    refs = batch_refs(training.pools, batch_size=config.data.batch_size, seed=config.seed, step=step - 1)
    return shared.dataset.tile_ids([(ref.split, ref.index) for ref in refs])


def evaluate(setup: steps.Setup, state: TrainState, evaluator: Evaluator) -> Scores:
    return evaluator(setup.model, setup.inputs, setup.sensor, state.model_variables)


def pictures(
    shared: Context, training: Training, state: TrainState, evaluator: Evaluator, scores: Scores
) -> dict[str, np.ndarray]:
    """What a validation looks like: some tiles and the confusion matrix, as images."""
    setup, name = training.setup, training.network.name
    network = Network(training.record, setup.model, setup.inputs, state.model_variables)
    drawn = drawings(evaluator, {name: network}, {name: scores}, shared.config.eval.panels)
    return {f"{what}_{evaluator.split}": figures.pixels(figure) for what, figure in drawn.items()}


def is_complete(training: Training) -> bool:
    """Whether the last step has been reached and its checkpoint is whole; a damaged one is trained again.

    Raises:
      CheckpointError: it was trained on other data, or with another teacher.
    """
    found = training.checkpoints.steps()
    if max(found, default=0) < training.total:
        return False
    try:
        training.checkpoints.verify(found[-1])
    except DamagedError:
        return False
    check_same_run(training, found[-1])
    return True


def make_setup(shared: Context, network: Run, frozen: Network | None, total: int) -> steps.Setup:
    config, dataset, axis_name = shared.config, shared.dataset, shared.parallel.axis_name
    spec = assembly.make_inputs(config, dataset.facts, dataset.statistics)
    if frozen:
        # The teacher must see what it was trained on, also where it comes from another data set.
        spec = dataclasses.replace(spec, eo=frozen.inputs.eo)
    return steps.Setup(
        model=assembly.make_model(config, network, len(dataset.facts.class_names), axis_name),
        sensor=network.sensor,
        tx=assembly.make_optimiser(config, total),
        inputs=spec,
        objective=assembly.make_objective(config, network, total, shared.class_pixels),
        teacher=frozen.model.clone(dtype=assembly.teacher_dtype(config, frozen.model)) if frozen else None,
        distiller=assembly.make_distiller(config, network, axis_name),
        cached=config.distill.cache and network.distils,
        axis_name=axis_name,
    )


def initial_state(
    shared: Context, training: Training, frozen: Network | None
) -> tuple[TrainState, int, list[dict[str, float]], dict[str, str] | None]:
    """The latest good checkpoint's state, or a fresh one.

    Returns:
      state, step, metrics that no line of the log has yet, and what the record says of the pretrained encoder that
      training began with (None: there was none); the file itself is needed once.
    """
    parallel, network, checkpoints = shared.parallel, training.network, training.checkpoints
    key = initial_key(shared.config.seed, network.sensor)
    state = parallel.init(initialiser(shared, network, training.setup, frozen), key)
    restored = checkpoints.restore_latest(parallel.abstract(state))
    if restored:
        check_same_run(training, restored[1])
        stored = checkpoints.record(restored[1])
        return parallel.placed(restored[0]), restored[1], stored["unlogged"], stored.get("pretrained")
    path, origin = assembly.pretrained_file(shared.config, network), None
    if network.from_teacher or path:
        mine = jax.device_get(parallel.local(state.model_variables))
        if network.from_teacher:
            theirs = jax.device_get(parallel.local(frozen.variables))
            fitted = student_from_teacher(mine, theirs, training.setup.model.stem)
        else:
            bands = assembly.chosen_bands(shared.config, shared.dataset.facts, network.sensor)
            fitted, origin = pretrained.begin(mine, path, bands)
        fitted = parallel.replicate(fitted)
        params = {**state.params, "model": fitted["params"]}
        state = state.replace(params=params, batch_stats={**state.batch_stats, "model": fitted["batch_stats"]})
    return state, 0, [], origin


def check_same_run(training: Training, step: int) -> None:
    """CheckpointError where a checkpoint was made with other data, statistics or another teacher than are at hand."""
    stored = training.checkpoints.record(step)
    for part in ("facts", "inputs", "tiles", "teacher"):
        lines = [line for _, line in differences(stored[part], assembly.jsonable(training.record[part]), f"{part}.")]
        if lines:
            raise CheckpointError(
                f"{training.checkpoints.directory}/{step} cannot be continued: its data or its teacher have changed. "
                + "; ".join(lines[:5])
            )


def initialiser(shared: Context, network: Run, setup: steps.Setup, frozen: Network | None):
    """key -> TrainState; without pmap axis, which exists only inside the step."""
    bands = len(assembly.chosen_bands(shared.config, shared.dataset.facts, network.sensor))
    model = setup.model.clone(axis_name=None)
    if setup.distiller is None:
        return init_fn(model, setup.tx, bands)
    reference = (frozen.model, len(frozen.record["bands"]["eo"]))
    return init_fn(model, setup.tx, bands, setup.distiller.clone(axis_name=None), reference)
