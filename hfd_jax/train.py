"""The two-stage run: train the EO teacher, freeze it, train the SAR student from it, evaluate both."""

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from hfd_jax import assembly, reporting, steps
from hfd_jax.assembly import Run
from hfd_jax.checkpoint import Checkpoints
from hfd_jax.config_check import check_against_data, check_fields
from hfd_jax.data import catalogue
from hfd_jax.data.catalogue import Dataset
from hfd_jax.data.pipeline import training_batches, training_pools
from hfd_jax.errors import ConfigError
from hfd_jax.evaluate import Evaluator, Network, evaluate_workdir, load_network, table
from hfd_jax.metrics import Scores
from hfd_jax.parallel import Jit, Pmap, enable_compilation_cache, make_parallel, prefetch
from hfd_jax.reporting import say
from hfd_jax.state import TrainState, init_fn, student_from_teacher
from hfd_jax.workdir import Workdir, claim, package_versions


@dataclasses.dataclass(frozen=True)
class Context:
    """What all networks of a run share."""

    config: ConfigDict
    workdir: Workdir
    dataset: Dataset
    parallel: Jit | Pmap
    log: reporting.MetricsLog

    def evaluator(self, split: str) -> Evaluator:
        reading = assembly.make_reading(self.config, self.dataset.facts)
        return Evaluator(
            self.dataset, split, reading, self.parallel, self.config.eval.batch_size, self.config.eval.window
        )

    def folder(self, network: str) -> str:
        """The checkpoints of a network; the teacher may come from elsewhere."""
        if network == "teacher" and self.config.teacher.checkpoint:
            return self.config.teacher.checkpoint
        return self.workdir.checkpoints(network)


def run(config: ConfigDict, root: str) -> dict[str, Scores]:
    """Runs config.stage in the workdir `root`, resuming what is there.

    Returns:
      title -> scores on config.eval.split, for every network of the stage and its teacher.

    Raises:
      UserError: before anything is computed or overwritten.
    """
    context = prepare(config, root)
    runs = assembly.stages(config)
    for network in runs:
        train_network(context, network)
    names = dict.fromkeys(["teacher", *(network.name for network in runs)])
    if config.stage == "student" and not any(network.needs_teacher for network in runs):
        names.pop("teacher")
    split = config.eval.split
    say(f"evaluating on split {split!r} ({context.dataset.size(split)} tiles)")
    folders = {name: context.folder(name) for name in names}
    results = evaluate_workdir(
        context.workdir, folders, context.evaluator(split), config.eval.checkpoint, context.parallel, config.eval.panels
    )
    say(table(results))
    say(f"written to {context.workdir.root}: evaluation.json, figures/panel_{split}.png, figures/confusion_{split}.png")
    return results


def prepare(config: ConfigDict, root: str) -> Context:
    """Checks everything, claims the workdir, opens (or simulates) the data."""
    enable_compilation_cache()
    check_fields(config, jax.device_count())
    scenes = scene_source(config)
    if scenes:  # known before they exist
        check_against_data(config, scenes.facts, [split for split, keys in scenes.keys().items() if keys])
    else:
        dataset = catalogue.find_dataset(config.data.name, config.data.dir)
        check_against_data(config, dataset.facts, list(dataset.sizes))
    workdir = Workdir(root)
    claim(workdir, config)
    context = open_run(config, workdir)
    sizes = ", ".join(f"{count} {split}" for split, count in context.dataset.sizes.items())
    say(f"data: {context.dataset.directory}, {sizes}")
    say(f"devices: {jax.device_count()} {jax.default_backend()}, {config.parallel}, {config.dtype}")
    return context


def open_run(config: ConfigDict, workdir: Workdir) -> Context:
    """The context of a run whose config has been checked."""
    scenes = scene_source(config)
    dataset = (
        catalogue.prepare_scenes(scenes, config.data.dir)
        if scenes
        else catalogue.find_dataset(config.data.name, config.data.dir)
    )
    log = reporting.MetricsLog(workdir.metrics)
    return Context(config, workdir, dataset, make_parallel(config.parallel), log)


def scene_source(config: ConfigDict) -> catalogue.SceneSource | None:
    return assembly.scene_source(config.data.scenes) if config.data.name == "scenes" else None


def train_network(context: Context, network: Run) -> None:
    """Trains one network to its last step, from its latest checkpoint if there is one."""
    config, parallel, facts = context.config, context.parallel, context.dataset.facts
    total = config.teacher.steps if network.name == "teacher" else config.student.steps
    checkpoints = Checkpoints(context.workdir.checkpoints(network.name), config.train.keep_checkpoints)
    if max(checkpoints.steps(), default=0) >= total:
        say(f"{network.title}: already trained for {total} steps")
        checkpoints.close()
        return
    teacher = load_teacher(context) if network.needs_teacher else None
    setup = make_setup(context, network, teacher, total)
    state, start = initial_state(context, network, setup, teacher, checkpoints)
    pools = make_pools(context, network)
    tiles = " + ".join(f"{len(refs)} {'labelled' if refs[0].labelled else 'unlabelled'}" for refs, _ in pools)
    say(f"{network.title}: {tiles} tiles, steps {start} to {total}")
    batches = training_batches(
        context.dataset,
        pools,
        assembly.make_reading(config, facts),
        crop=config.data.crop,
        batch_size=config.data.batch_size,
        seed=config.seed,
        start_step=start,
        process=(jax.process_index(), jax.process_count()),
    )
    record = assembly.make_record(config, network, context.dataset, setup.inputs, package_versions())
    variables = teacher.variables if setup.objective.distils else parallel.replicate({})
    loop(
        context,
        network,
        setup,
        state,
        variables,
        prefetch(batches, parallel.shard),
        checkpoints,
        record,
        (start, total),
    )
    checkpoints.close()


def loop(
    context, network: Run, setup: steps.Setup, state: TrainState, teacher: Any, batches, checkpoints, record, span
) -> None:
    """step, log, evaluate, save."""
    settings, parallel, (start, total) = context.config.train, context.parallel, span
    train_step = parallel.train_step(steps.train_step(setup))
    evaluator = context.evaluator("validation") if settings.eval_every else None
    schedule = assembly.make_schedule(context.config, total)
    context.log.rewind(network.name, start)
    summaries = reporting.Summaries(f"{context.workdir.summaries}/{network.name}")
    progress, recent = reporting.Progress(total, start), []
    for step in range(start + 1, total + 1):
        state, metrics = train_step(state, teacher, next(batches))
        recent.append(metrics)
        last = step == total
        if last or step % settings.log_every == 0 or step == start + 1:
            values = reporting.mean_of(recent) | {"learning_rate": float(schedule(step - 1))}
            recent = []
            say(f"{network.name:>12}  {progress.text(step)}  {reporting.short(values)}")
            context.log.write(network.name, step, values)
            summaries.scalars(step, values)
        score = None
        if evaluator and (last or step % settings.eval_every == 0):
            score = validate(context, network, setup, state, evaluator, step, summaries)
        if last or step % settings.checkpoint_every == 0:
            checkpoints.save(step, parallel.single(state), record, score)
    summaries.close()


def validate(
    context, network: Run, setup: steps.Setup, state: TrainState, evaluator: Evaluator, step: int, summaries
) -> float:
    """mIoU on the validation split; logged."""
    row = evaluator(setup.model, setup.inputs, setup.sensor, state.model_variables)
    values = {"validation_mean_iou": row.mean_iou, "validation_accuracy": row.accuracy}
    say(f"{network.name:>12}  {step}: validation mIoU {row.mean_iou:.4f}")
    context.log.write(network.name, step, values)
    summaries.scalars(step, values)
    return row.mean_iou


def load_teacher(context: Context) -> Network:
    """The frozen teacher, from this workdir or config.teacher.checkpoint; ConfigError where it does not fit."""
    config, facts = context.config, context.dataset.facts
    folder = context.folder("teacher")
    teacher = load_network(folder, config.eval.checkpoint, context.parallel)
    record = teacher.record
    for what, found, expected in (
        ("sensor", record["sensor"], "eo"),
        ("EO bands", record["bands"]["eo"], list(assembly.chosen_bands(config, facts, "eo"))),
        ("classes", record["facts"]["class_names"], list(facts.class_names)),
    ):
        if found != expected:
            raise ConfigError(
                f"config.teacher.checkpoint: the network in {folder} has {what} {found}; this run has {expected}"
            )
    return teacher


def make_setup(context: Context, network: Run, teacher: Network | None, total: int) -> steps.Setup:
    config, dataset, axis_name = context.config, context.dataset, context.parallel.axis_name
    inputs = assembly.make_inputs(config, dataset.facts, dataset.statistics)
    if teacher:
        # The teacher must see what it was trained on, also where it comes from another data set.
        inputs = dataclasses.replace(inputs, eo=teacher.inputs.eo)
    return steps.Setup(
        model=assembly.make_model(config, len(dataset.facts.class_names), axis_name),
        sensor=network.sensor,
        tx=assembly.make_optimiser(config, total),
        inputs=inputs,
        objective=assembly.make_objective(config, network, total, dataset.statistics),
        seed=config.seed,
        teacher=teacher.model if teacher else None,
        distiller=assembly.make_distiller(config, network, axis_name),
        axis_name=axis_name,
    )


def make_pools(context: Context, network: Run):
    """A distilling student draws from labelled and unlabelled pairs; every other network from labelled ones."""
    data = context.config.data
    labelled, unlabelled = training_pools(context.dataset, data.label_share, context.config.seed)
    if network.distils and unlabelled and data.labelled_per_batch < 1:
        return [(labelled, data.labelled_per_batch), (unlabelled, 1 - data.labelled_per_batch)]
    return [(labelled, 1.0)]


def initial_state(
    context, network: Run, setup: steps.Setup, teacher: Network | None, checkpoints: Checkpoints
) -> tuple[TrainState, int]:
    """The latest checkpoint's state, or a fresh one."""
    parallel = context.parallel
    state = parallel.init(initialiser(context, network, setup, teacher), jax.random.key(context.config.seed))
    restored = checkpoints.restore_latest(parallel.abstract(state))
    if restored:
        return parallel.placed(restored[0]), restored[1]
    if network.from_teacher:
        fitted = student_from_teacher(
            jax.device_get(parallel.local(state.model_variables)), jax.device_get(parallel.local(teacher.variables))
        )
        params = {**state.params, "model": parallel.replicate(fitted["params"])}
        state = state.replace(
            params=params, batch_stats={**state.batch_stats, "model": parallel.replicate(fitted["batch_stats"])}
        )
    return state, 0


def initialiser(context, network: Run, setup: steps.Setup, teacher: Network | None):
    """key -> TrainState; without pmap axis, which exists only inside the step."""
    bands = len(assembly.chosen_bands(context.config, context.dataset.facts, network.sensor))
    model = setup.model.clone(axis_name=None)
    if setup.distiller is None:
        return init_fn(model, setup.tx, bands)
    return init_fn(
        model,
        setup.tx,
        bands,
        setup.distiller.clone(axis_name=None),
        (teacher.model, len(teacher.record["bands"]["eo"])),
    )
