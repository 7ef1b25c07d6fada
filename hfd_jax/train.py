"""The two-stage run: train the EO teacher, freeze it, train the SAR student from it, evaluate both."""

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from hfd_jax import assembly, context, reporting, steps, teacher
from hfd_jax.assembly import Run
from hfd_jax.checkpoint import Checkpoints, DamagedError
from hfd_jax.context import Context
from hfd_jax.data.pipeline import training_batches
from hfd_jax.errors import CheckpointError
from hfd_jax.evaluate import Evaluator, Network, evaluate_workdir, table
from hfd_jax.interruption import Interruption, StoppedError, watch
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
        say(f"teacher: from {shared.folder('teacher')}")
    split = config.eval.split
    say(f"evaluating on split {split!r} ({shared.dataset.size(split)} tiles)")
    results = evaluate_workdir(
        shared.workdir,
        {name: shared.folder(name) for name in names},
        shared.evaluator(split),
        config.eval.checkpoint,
        shared.parallel,
        config.eval.panels,
    )
    say(table(results))
    say(f"written to {shared.workdir.root}: evaluation.json, figures/panel_{split}.png, figures/confusion_{split}.png")
    return results


def train_network(shared: Context, network: Run) -> None:
    """Trains one network to its last step, from its latest good checkpoint if there is one."""
    config = shared.config
    total = config.teacher.steps if network.name == "teacher" else config.student.steps
    checkpoints = Checkpoints(shared.workdir.checkpoints(network.name), config.train.keep_checkpoints)
    if is_complete(checkpoints, total):
        say(f"{network.title}: already trained for {total} steps")
        checkpoints.close()
        return
    frozen = None
    if network.needs_teacher:
        frozen = teacher.load_teacher(config, shared.workdir, shared.dataset.facts, network, shared.parallel)
    setup = make_setup(shared, network, frozen, total)
    record = assembly.make_record(config, network, shared.dataset, setup.inputs, package_versions())
    record["teacher"] = teacher.identity(frozen)
    state, start, unlogged = initial_state(shared, network, setup, frozen, checkpoints, record)
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
    batches = prefetch(batches, shared.parallel.shard)
    with watch() as interruption:
        span = (start, total, unlogged)
        loop(shared, network, setup, state, variables, batches, checkpoints, record, span, interruption)


def loop(
    shared,
    network: Run,
    setup: steps.Setup,
    state: TrainState,
    frozen: Any,
    batches,
    checkpoints: Checkpoints,
    record: dict[str, Any],
    span: tuple[int, int, list],
    interruption: Interruption,
) -> None:
    """step, log, evaluate, save; `span` is (first step, last step, metrics since the last line of the log).

    Raises:
      StoppedError: a signal came; the state is saved.
    """
    settings, parallel, (start, total, recent) = shared.config.train, shared.parallel, span
    train_step = parallel.train_step(steps.train_step(setup))
    evaluator = shared.evaluator("validation") if settings.eval_every else None
    schedule = assembly.make_schedule(shared.config, total)
    shared.log.rewind(network.name, start)
    summaries = reporting.Summaries(f"{shared.workdir.summaries}/{network.name}")
    progress = reporting.Progress(total, start)
    for step in range(start + 1, total + 1):
        state, metrics = train_step(state, frozen, next(batches))
        recent.append(metrics)
        last, stop = step == total, interruption.requested(step)
        if last or step % settings.log_every == 0 or step == 1:
            values = reporting.mean_of(recent) | {"learning_rate": float(schedule(step - 1))}
            recent = []
            say(f"{network.name:>12}  {progress.text(step)}  {reporting.short(values)}")
            shared.log.write(network.name, step, values)
            summaries.scalars(step, values)
        score = None
        if evaluator and (last or step % settings.eval_every == 0):
            score = validate(shared, network, setup, state, evaluator, step, summaries)
        if last or stop or step % settings.checkpoint_every == 0:
            recent = reporting.rows_of(recent)
            checkpoints.save(step, parallel.single(state), record | {"unlogged": recent}, score)
        if stop:
            break
    summaries.close()
    checkpoints.close()
    if stop:
        raise StoppedError(f"stopped after step {step} of {network.name}, which is saved; the same command continues")


def validate(
    shared, network: Run, setup: steps.Setup, state: TrainState, evaluator: Evaluator, step, summaries
) -> float:
    """mIoU on the validation split; logged."""
    row = evaluator(setup.model, setup.inputs, setup.sensor, state.model_variables)
    values = {"validation_mean_iou": row.mean_iou, "validation_accuracy": row.accuracy}
    say(f"{network.name:>12}  {step}: validation mIoU {row.mean_iou:.4f}")
    shared.log.write(network.name, step, values)
    summaries.scalars(step, values)
    return row.mean_iou


def is_complete(checkpoints: Checkpoints, total: int) -> bool:
    """Whether the last step has been reached and its checkpoint is whole; a damaged one is trained again."""
    if max(checkpoints.steps(), default=0) < total:
        return False
    try:
        checkpoints.verify(checkpoints.steps()[-1])
    except DamagedError:
        return False
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
    shared, network: Run, setup: steps.Setup, frozen: Network | None, checkpoints: Checkpoints, record: dict
) -> tuple[TrainState, int, list[dict[str, float]]]:
    """(state, step, metrics that no line of the log has yet) of the latest good checkpoint, or a fresh state."""
    parallel = shared.parallel
    # Sensors differ in their key: a teacher must not share its student's random start. Students do share theirs.
    key = jax.random.fold_in(jax.random.key(shared.config.seed), ("eo", "sar").index(network.sensor))
    state = parallel.init(initialiser(shared, network, setup, frozen), key)
    restored = checkpoints.restore_latest(parallel.abstract(state))
    if restored:
        check_same_run(checkpoints, restored[1], record)
        return parallel.placed(restored[0]), restored[1], checkpoints.record(restored[1])["unlogged"]
    if network.from_teacher:
        mine, theirs = (jax.device_get(parallel.local(v)) for v in (state.model_variables, frozen.variables))
        fitted = parallel.replicate(student_from_teacher(mine, theirs))
        params = {**state.params, "model": fitted["params"]}
        state = state.replace(params=params, batch_stats={**state.batch_stats, "model": fitted["batch_stats"]})
    return state, 0, []


def check_same_run(checkpoints: Checkpoints, step: int, record: dict[str, Any]) -> None:
    """CheckpointError where a checkpoint was made with other data, statistics or another teacher than are at hand."""
    stored = checkpoints.record(step)
    for part in ("facts", "inputs", "tiles", "teacher"):
        lines = [line for _, line in differences(stored[part], assembly.jsonable(record[part]), f"{part}.")]
        if lines:
            raise CheckpointError(
                f"{checkpoints.directory}/{step} cannot be continued: its data or its teacher have changed. "
                + "; ".join(lines[:5])
            )


def initialiser(shared, network: Run, setup: steps.Setup, frozen: Network | None):
    """key -> TrainState; without pmap axis, which exists only inside the step."""
    bands = len(assembly.chosen_bands(shared.config, shared.dataset.facts, network.sensor))
    model = setup.model.clone(axis_name=None)
    if setup.distiller is None:
        return init_fn(model, setup.tx, bands)
    reference = (frozen.model, len(frozen.record["bands"]["eo"]))
    return init_fn(model, setup.tx, bands, setup.distiller.clone(axis_name=None), reference)
