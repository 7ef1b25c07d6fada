"""The two-stage run: train the EO teacher, freeze it, train the SAR student from it, evaluate both."""

import os

from ml_collections import ConfigDict

from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.interruption import Interruption, watch
from hfd_jax.core.logs import say
from hfd_jax.evaluation.diagnosis import choice, prospect
from hfd_jax.evaluation.evaluator import evaluate_workdir, table
from hfd_jax.evaluation.metrics import Scores
from hfd_jax.inference.restore import check_fits, load_network
from hfd_jax.train.failures import explained
from hfd_jax.train.loop import train_network
from hfd_jax.train.networks import networks_to_train
from hfd_jax.train.run import Run, prepared


def train(config: ConfigDict, root: str) -> dict[str, Scores]:
    """Runs config.stage in the workdir `root`, and resumes what was started there.

    Returns:
      title -> scores on config.eval.split, for every network of the stage and its teacher.

    Raises:
      UserError: something is wrong; nothing has been computed or overwritten.
      MachineError: memory does not suffice, or the system killed a process.
      StoppedError: a signal came; the state is saved, and the same call continues.
    """
    with watch() as interruption, prepared(config, root) as run, explained(config):
        return train_stages(run, interruption)


def train_stages(run: Run, interruption: Interruption) -> dict[str, Scores]:
    """Trains the networks of config.stage in order, each student after its teacher, then evaluates them."""
    config = run.config
    specs, taught, trained = networks_to_train(config), None, False
    for spec in specs:
        if spec.needs_teacher and taught is None:
            taught = score_teacher(run)
        if spec.distils:
            say(prospect(taught.mean_iou, score_of(run, "sar_only"), run.decision_split))
        trained |= train_network(run, spec, interruption, taught)
    names = [spec.name for spec in specs]
    if "teacher" not in names and any(spec.needs_teacher for spec in specs):
        names.insert(0, "teacher")
        say(f"teacher: from {run.checkpoint('teacher')[0]}")
    split = config.eval.split
    say(f"evaluating on split {split!r} ({run.dataset.size(split)} tiles)")
    # Importing TensorFlow takes seconds, which existing pictures do not need.
    summaries = os.path.join(run.workdir.summaries, "evaluation")
    results, written = evaluate_workdir(
        run.workdir,
        {name: run.checkpoint(name) for name in names},
        run.evaluator(split),
        run.parallel,
        config.eval.panels,
        known={"teacher": taught} if taught and run.decision_split == split else {},
        summaries=summaries if trained or not os.path.exists(summaries) else "",
    )
    say(table(results))
    if "sar_only" in names and any(spec.distils for spec in specs):
        say(choice(score_of(run, "sar_only"), score_of(run, "student")))
    say(f"written to {run.workdir.root}: {', '.join(written)}")
    return results


def score_teacher(run: Run) -> Scores:
    """Evaluates the teacher before its first student is trained, so that a poor teacher shows at once."""
    split = run.decision_split
    network = load_network(*run.checkpoint("teacher"), run.parallel)
    check_fits(network.record, run.dataset.facts)
    scores = run.evaluator(split)(network.model, network.inputs, network.sensor, network.variables)
    say(f"{network.record['title']}: mIoU {scores.mean_iou:.4f} on split {split!r}, before it teaches")
    return scores


def score_of(run: Run, network: str) -> float | None:
    """The mIoU on the validation split of a network's checkpoint that counts; None if unknown."""
    folder = run.workdir.checkpoints(network)
    if run.decision_split != "validation" or not os.path.isdir(folder):
        return None
    checkpoints = CheckpointReader(folder)
    if run.config.eval.checkpoint == "best":
        return max(checkpoints.scores().values(), default=None)
    steps = checkpoints.steps()
    return checkpoints.record(steps[-1]).get("score") if steps else None
