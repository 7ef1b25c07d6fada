"""The training of one network: what its step needs, where it is saved, and the state it starts from."""

import dataclasses
from typing import Any

import jax

from hfd_jax.core.checkpoint import Checkpoints, DamagedError
from hfd_jax.core.errors import CheckpointError
from hfd_jax.core.workdir import differences, jsonable, package_versions
from hfd_jax.data.pipeline import Pool
from hfd_jax.evaluation.metrics import Scores
from hfd_jax.inference.restore import Network, identity
from hfd_jax.models import pretrained
from hfd_jax.train import build, reading, steps
from hfd_jax.train.networks import NetworkSpec, pretrained_file
from hfd_jax.train.run import Run
from hfd_jax.train.state import TrainState, init_fn, initial_key, student_from_teacher


@dataclasses.dataclass(frozen=True)
class Training:
    """The network to train and everything that its training loop uses.

    Attributes:
      spec: the network that is trained.
      setup: the fixed part of its step.
      frozen: its teacher, or None.
      checkpoints: its checkpoints.
      record: metadata saved with each checkpoint.
      total: number of training steps.
      pools: the tiles that every batch draws from.
    """

    spec: NetworkSpec
    setup: steps.Setup
    frozen: Network | None
    checkpoints: Checkpoints
    record: dict[str, Any]
    total: int
    pools: list[Pool]


def make_training(
    run: Run, spec: NetworkSpec, frozen: Network | None = None, teacher_scores: Scores | None = None
) -> Training:
    """Builds everything that training one network needs, and opens its checkpoints.

    Args:
      run: the run.
      spec: the network to train.
      frozen: its teacher, if it needs one.
      teacher_scores: the teacher's scores, for the checkpoints' record.
    """
    config = run.config
    total = config.teacher.steps if spec.name == "teacher" else config.student.steps
    setup = make_setup(run, spec, frozen, total)
    record = build.make_record(config, spec, run.dataset, setup.inputs, package_versions())
    record["teacher"] = identity(frozen)
    if teacher_scores:
        record["teacher_score"] = {"split": run.decision_split, "mean_iou": teacher_scores.mean_iou}
    checkpoints = Checkpoints(run.workdir.checkpoints(spec.name), config.train.keep_checkpoints)
    return Training(spec, setup, frozen, checkpoints, record, total, reading.make_pools(config, run.dataset, spec))


def make_setup(run: Run, spec: NetworkSpec, frozen: Network | None, total: int) -> steps.Setup:
    """The fixed part of a network's training step."""
    config, dataset = run.config, run.dataset
    inputs = build.make_inputs(config, dataset.facts, dataset.statistics)
    if frozen:
        # The teacher keeps the statistics of its own training data, even if that is another data set.
        inputs = dataclasses.replace(inputs, eo=frozen.inputs.eo)
    return steps.Setup(
        model=build.make_model(config, spec, len(dataset.facts.class_names)),
        sensor=spec.sensor,
        tx=build.make_optimiser(config, total, student=spec.sensor == "sar"),
        inputs=inputs,
        objective=build.make_objective(config, spec, total, run.class_pixels),
        teacher=frozen.model.clone(dtype=build.teacher_dtype(config, frozen.model)) if frozen else None,
        distiller=build.make_distiller(config, spec),
    )


def is_complete(training: Training) -> bool:
    """Whether the last step has been reached and its checkpoint is intact; a damaged one is trained again.

    Raises:
      CheckpointError: the network was trained on other data, or with another teacher.
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


def initial_state(
    run: Run, training: Training
) -> tuple[TrainState, int, list[dict[str, float]], dict[str, str] | None]:
    """The state of the latest intact checkpoint, or a fresh one.

    Returns:
      state, step, metrics that no line of the log has yet, and the metadata of the pretrained encoder that training
      began with (None if there was none); the encoder's file is needed only once.
    """
    parallel, spec, checkpoints = run.parallel, training.spec, training.checkpoints
    state = parallel.init(initialiser(run, training), initial_key(run.config.seed, spec.sensor))
    check_same_method(run, training)
    restored = checkpoints.restore_latest(parallel.abstract(state))
    if restored:
        check_same_run(training, restored[1])
        stored = checkpoints.record(restored[1])
        return parallel.placed(restored[0]), restored[1], stored["unlogged"], stored.get("pretrained")
    path, origin = pretrained_file(run.config, spec), None
    if spec.from_teacher or path:
        fresh = jax.device_get(parallel.local(state.model_variables))
        if spec.from_teacher:
            teacher = jax.device_get(parallel.local(training.frozen.variables))
            fitted = student_from_teacher(fresh, teacher, training.setup.model.stems)
        else:
            bands = build.chosen_bands(run.config, run.dataset.facts, spec.sensor)
            fitted, origin = pretrained.begin(fresh, path, bands)
        fitted = parallel.replicate(fitted)
        params = {**state.params, "model": fitted["params"]}
        state = state.replace(params=params, batch_stats={**state.batch_stats, "model": fitted["batch_stats"]})
    return state, 0, [], origin


def check_same_method(run: Run, training: Training) -> None:
    """Raises CheckpointError if version 0.1, with its different batches and distillation loss, started a student."""
    found = training.checkpoints.steps()
    if not (training.spec.distils and found):
        return
    try:
        stored = training.checkpoints.record(found[-1])["config"]
    except DamagedError:
        return  # a damaged checkpoint is set aside when it is restored
    if "unlabelled_ratio" not in stored["data"]:
        raise CheckpointError(
            f"{training.checkpoints.directory}/{found[-1]} cannot be resumed: version 0.1 started it, with "
            "different batches and a different distillation loss. Train the student again in a new --workdir, with "
            "this teacher: "
            f"--config.teacher.checkpoint={run.workdir.checkpoints('teacher')}"
        )


def check_same_run(training: Training, step: int) -> None:
    """Raises CheckpointError if a checkpoint was made with other data, statistics or another teacher."""
    stored = training.checkpoints.record(step)
    for part in ("facts", "inputs", "tiles", "teacher"):
        lines = [line for _, line in differences(stored[part], jsonable(training.record[part]), f"{part}.")]
        if lines:
            raise CheckpointError(
                f"{training.checkpoints.directory}/{step} cannot be resumed: its data or its teacher have changed. "
                + "; ".join(lines[:5])
            )


def initialiser(run: Run, training: Training):
    """Returns a function key -> TrainState."""
    setup, facts = training.setup, run.dataset.facts
    bands = len(build.chosen_bands(run.config, facts, training.spec.sensor))
    if setup.distiller is None:
        return init_fn(setup.model, setup.tx, bands)
    teacher = (training.frozen.model, len(training.frozen.record["bands"]["eo"]))
    return init_fn(setup.model, setup.tx, bands, setup.distiller, teacher)
