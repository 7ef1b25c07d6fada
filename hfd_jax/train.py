"""The two-stage run: train the EO teacher, freeze it, train the SAR student from it, evaluate both."""

import contextlib
import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from hfd_jax import assembly, context, reporting, steps, teacher
from hfd_jax.assembly import Run
from hfd_jax.checkpoint import Checkpoints, DamagedError
from hfd_jax.context import Context
from hfd_jax.data.pipeline import training_batches
from hfd_jax.errors import CheckpointError, StoppedError
from hfd_jax.evaluate import Evaluator, Network, evaluate_workdir, table
from hfd_jax.interruption import watch
from hfd_jax.metrics import Scores
from hfd_jax.parallel import prefetch
from hfd_jax.reporting import say
from hfd_jax.state import TrainState, init_fn, student_from_teacher
from hfd_jax.workdir import differences, package_versions


def run(config: ConfigDict, root: str) -> dict[str, Scores]:
    """Runs config.stage in the workdir `root`, resuming what is there.

    Returns:
      title -> scores on config.eval.split, for every network of the stage and its teacher.

    Raises:
      UserError: before anything is computed or overwritten.
      StoppedError: a signal came; all is saved, and the same call continues.
    """
    shared = context.prepare(config, root)
    runs = assembly.stages(config)
    for network in runs:
        train_network(shared, network)
    names = [network.name for network in runs]
    if "teacher" not in names and any(network.needs_teacher for network in runs):
        names.insert(0, "teacher")
        say(f"teacher: from {shared.checkpoint('teacher')[0]}")
    split = config.eval.split
    say(f"evaluating on split {split!r} ({shared.dataset.size(split)} tiles)")
    results = evaluate_workdir(
        shared.workdir,
        {name: shared.checkpoint(name) for name in names},
        shared.evaluator(split),
        shared.parallel,
        config.eval.panels,
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
    """

    network: Run
    setup: steps.Setup
    checkpoints: Checkpoints
    record: dict[str, Any]
    total: int


def train_network(shared: Context, network: Run) -> None:
    """Trains one network to its last step, from its latest good checkpoint if there is one."""
    config = shared.config
    total = config.teacher.steps if network.name == "teacher" else config.student.steps
    frozen = None
    if network.needs_teacher:
        frozen = teacher.load_teacher(config, shared.workdir, shared.dataset.facts, network, shared.parallel)
    setup = make_setup(shared, network, frozen, total)
    record = assembly.make_record(config, network, shared.dataset, setup.inputs, package_versions())
    record["teacher"] = teacher.identity(frozen)
    checkpoints = Checkpoints(shared.workdir.checkpoints(network.name), config.train.keep_checkpoints)
    training = Training(network, setup, checkpoints, record, total)
    if is_complete(training):
        say(f"{network.title}: already trained for {total} steps")
        checkpoints.close()
        return
    state, start, unlogged = initial_state(shared, training, frozen)
    pools = assembly.make_pools(config, shared.dataset, network)
    tiles = " + ".join(f"{len(refs)} {'labelled' if refs[0].labelled else 'unlabelled'}" for refs, _ in pools)
    say(f"{network.title}: {tiles} tiles, steps {start} to {total}")
    batches = training_batches(
        shared.dataset,
        pools,
        assembly.make_reading(config, shared.dataset.facts),
        crop=config.data.crop,
        batch_size=config.data.batch_size,
        seed=config.seed,
        start_step=start,
        process=(jax.process_index(), jax.process_count()),
    )
    variables = frozen.variables if setup.objective.distils else shared.parallel.replicate({})
    with contextlib.closing(prefetch(batches, shared.parallel.shard)) as batches:
        loop(shared, training, state, variables, batches, start, unlogged)


def loop(shared: Context, training: Training, state: TrainState, frozen: Any, batches, start: int, unlogged: list):
    """step, log, evaluate, save.

    Args:
      shared, training: the run and the network.
      state: to begin with.
      frozen: the teacher's variables; empty where nothing is distilled.
      batches: of the steps from start + 1.
      start: steps taken.
      unlogged: metrics of the last of them that no line of the log has yet.

    Raises:
      StoppedError: a signal came; the state is saved.
    """
    settings, parallel, network = shared.config.train, shared.parallel, training.network
    train_step = parallel.train_step(steps.train_step(training.setup))
    evaluator = shared.evaluator("validation") if settings.eval_every else None
    schedule = assembly.make_schedule(shared.config, training.total)
    shared.log.rewind(network.name, start)
    summaries = reporting.Summaries(f"{shared.workdir.summaries}/{network.name}")
    progress, stop = reporting.Progress(training.total, start), False
    with watch() as interruption:
        for step in range(start + 1, training.total + 1):
            state, metrics = train_step(state, frozen, next(batches))
            unlogged.append(metrics)
            last, stop, score = step == training.total, interruption.requested(step), None
            progress.tick(step)
            if last or step % settings.log_every == 0 or step == 1:
                values = reporting.mean_of(unlogged) | {"learning_rate": float(schedule(step - 1))}
                unlogged = []
                say(f"{network.name:>12}  {progress.text(step)}  {reporting.short(values)}")
                shared.log.write(network.name, step, values)
                summaries.scalars(step, values)
            if evaluator and (last or step % settings.eval_every == 0):
                score = validate(shared, training, state, evaluator, step, summaries)
            if last or stop or step % settings.checkpoint_every == 0:
                # A list of its own: the record is written in the background while the next steps append to the other.
                record = training.record | {"unlogged": reporting.rows_of(unlogged)}
                training.checkpoints.save(step, parallel.single(state), record, score)
            if stop:
                break
        summaries.close()
        training.checkpoints.close()
    if stop:
        raise StoppedError(f"stopped after step {step} of {network.name}, which is saved; the same command continues")


def validate(
    shared: Context, training: Training, state: TrainState, evaluator: Evaluator, step: int, summaries
) -> float:
    """mIoU on the validation split; logged."""
    setup, network = training.setup, training.network
    row = evaluator(setup.model, setup.inputs, setup.sensor, state.model_variables)
    values = {"validation_mean_iou": row.mean_iou, "validation_accuracy": row.accuracy}
    say(f"{network.name:>12}  {step}: validation mIoU {row.mean_iou:.4f}")
    shared.log.write(network.name, step, values)
    summaries.scalars(step, values)
    return row.mean_iou


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
    inputs = assembly.make_inputs(config, dataset.facts, dataset.statistics)
    if frozen:
        # The teacher must see what it was trained on, also where it comes from another data set.
        inputs = dataclasses.replace(inputs, eo=frozen.inputs.eo)
    return steps.Setup(
        model=assembly.make_model(config, len(dataset.facts.class_names), axis_name),
        sensor=network.sensor,
        tx=assembly.make_optimiser(config, total),
        inputs=inputs,
        objective=assembly.make_objective(config, network, total, shared.class_pixels),
        teacher=frozen.model if frozen else None,
        distiller=assembly.make_distiller(config, network, axis_name),
        axis_name=axis_name,
    )


def initial_state(
    shared: Context, training: Training, frozen: Network | None
) -> tuple[TrainState, int, list[dict[str, float]]]:
    """(state, step, metrics that no line of the log has yet) of the latest good checkpoint, or a fresh state."""
    parallel, network, checkpoints = shared.parallel, training.network, training.checkpoints
    # Sensors differ in their key: a teacher must not share its student's random start. Students do share theirs.
    key = jax.random.fold_in(jax.random.key(shared.config.seed), ("eo", "sar").index(network.sensor))
    state = parallel.init(initialiser(shared, network, training.setup, frozen), key)
    restored = checkpoints.restore_latest(parallel.abstract(state))
    if restored:
        check_same_run(training, restored[1])
        return parallel.placed(restored[0]), restored[1], checkpoints.record(restored[1])["unlogged"]
    if network.from_teacher:
        mine, theirs = (jax.device_get(parallel.local(v)) for v in (state.model_variables, frozen.variables))
        fitted = parallel.replicate(student_from_teacher(mine, theirs))
        params = {**state.params, "model": fitted["params"]}
        state = state.replace(params=params, batch_stats={**state.batch_stats, "model": fitted["batch_stats"]})
    return state, 0, []


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
