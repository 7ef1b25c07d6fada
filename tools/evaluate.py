"""Evaluates the networks of a run from their checkpoints, in a process of its own.

  python -m tools.evaluate --workdir=runs/quickstart
  python -m tools.evaluate --workdir=runs/quickstart --stage=student --split=validation
  python -m tools.evaluate --workdir=runs/sen12ms --data=dfc2020/simplified --split=test
  python -m tools.evaluate --workdir=runs/spacenet6 --polygons

Prints IoU per class, mIoU (mean over classes of one confusion matrix over the whole split), macro F1 (mean over classes
of F1), overall accuracy, Cohen's kappa and the number of ignored pixels. Writes WORKDIR/evaluation.json,
WORKDIR/figures/confusion_SPLIT.png and WORKDIR/figures/panel_SPLIT.png (with --data: ..._DATA_SPLIT.png).

With --polygons also the SpaceNet building score (precision, recall and F1 of buildings as objects: intersection over
union above 0.5, from 80 pixels on, counts pooled over the split). The truth is taken from the stored label raster, in
which buildings that touch are one: the figure is not the challenge's own, which goes by footprints.
"""

import argparse
import os

import jax
from ml_collections import ConfigDict

from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.errors import WorkdirError
from hfd_jax.core.workdir import Workdir, read_config
from hfd_jax.data.catalogue import find_dataset
from hfd_jax.evaluation import buildings
from hfd_jax.evaluation.evaluator import evaluate_workdir, table
from hfd_jax.inference.restore import check_fits
from hfd_jax.models.registry import ARCHITECTURES
from hfd_jax.train.networks import BASELINES, teacher_folder
from hfd_jax.train.run import open_run
from hfd_jax.train.validate import check_fields
from tools import cli


def main(arguments: argparse.Namespace) -> None:
    workdir = Workdir(arguments.workdir)
    config = ConfigDict(read_config(workdir))
    if arguments.data_dir:
        config.data.dir = arguments.data_dir
    for field in ("batch_size", "window", "split", "panels"):
        if getattr(arguments, field) is not None:
            config.eval[field] = getattr(arguments, field)
    check_fields(config, jax.device_count(), trains=False)
    label = use_other_data(config, workdir, arguments) if arguments.data else ""
    shared = open_run(config, workdir)
    checkpoints = {name: shared.checkpoint(name) for name in networks(arguments.stage)}
    checkpoints = {
        name: (folder, arguments.checkpoint or which)
        for name, (folder, which) in checkpoints.items()
        if os.path.isdir(folder)
    }
    if not checkpoints:
        raise WorkdirError(f"{arguments.workdir}: no checkpoint of {arguments.stage or 'any network'} in it yet")
    evaluator = shared.evaluator(config.eval.split)
    if arguments.polygons is not None:  # a wrong name must not cost an evaluation
        arguments.polygons = buildings.building_class(evaluator.facts.class_names, arguments.polygons)
    results, written = evaluate_workdir(workdir, checkpoints, evaluator, shared.parallel, config.eval.panels, label)
    print(table(results))
    if arguments.polygons is not None:
        scores = buildings.score_workdir(workdir, checkpoints, evaluator, shared.parallel, arguments.polygons, label)
        print(buildings.table(scores, arguments.polygons))
    print(f"written to {workdir.root}: {', '.join(written)}")


def use_other_data(config: ConfigDict, workdir: Workdir, arguments: argparse.Namespace) -> str:
    """Turns the config to the data set that --data names, read as the run's networks were trained; names the result."""
    dataset = find_dataset(arguments.data, config.data.dir)
    for name in networks(arguments.stage):
        folder = teacher_folder(config, workdir) if name == "teacher" else workdir.checkpoints(name)
        if os.path.isdir(folder):
            reader = CheckpointReader(folder)
            record = reader.record(reader.choose(arguments.checkpoint or config.eval.checkpoint))
            check_fits(record, dataset.facts)
            config.data.sar_bands, config.data.eo_bands = (tuple(record["bands"][sensor]) for sensor in ("sar", "eo"))
    config.data.name = arguments.data
    return f"{arguments.data.replace('/', '_')}_{config.eval.split}"


def networks(stage: str | None) -> list[str]:
    """Folders below checkpoints/ that belong to a stage; every stage without one."""
    students = [*BASELINES, *ARCHITECTURES, "student"]
    return {"teacher": ["teacher"], "student": students, None: ["teacher", *students]}[stage]


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("evaluate", __doc__)
    parser.add_argument("--workdir", required=True, help="of the run, as main.py was given it")
    parser.add_argument(
        "--stage", choices=("teacher", "student"), help="only this stage's networks; default: all there are"
    )
    parser.add_argument("--split", help="of the data set; default: config.eval.split")
    parser.add_argument(
        "--checkpoint",
        choices=("latest", "best"),
        help="default: as the run did, config.eval.checkpoint",
    )
    parser.add_argument("--data", help="another prepared data set with the same classes; default: config.data.name")
    parser.add_argument("--data_dir", help="root of the prepared data sets; default: config.data.dir")
    parser.add_argument("--batch_size", type=int, help="windows per step; default: config.eval.batch_size")
    parser.add_argument("--window", type=int, help="edge of the windows, pixels; default: config.eval.window")
    parser.add_argument("--panels", type=int, help="tiles in the picture, 0: none; default: config.eval.panels")
    parser.add_argument(
        "--polygons",
        nargs="?",
        const="",
        metavar="CLASS",
        help="also the building score, of this class; default: the one called building",
    )
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
