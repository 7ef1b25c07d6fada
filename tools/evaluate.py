"""Evaluates the networks of a run from their checkpoints, or the network in a model file.

  python -m tools.evaluate --workdir=runs/quickstart
  python -m tools.evaluate --workdir=runs/quickstart --stage=student --split=validation
  python -m tools.evaluate --workdir=runs/sen12ms --data=dfc2020/simplified --split=test
  python -m tools.evaluate --workdir=runs/spacenet6 --polygons
  python -m tools.evaluate --model=student.safetensors --data=folder/my_data --output=scores

Prints IoU per class, mIoU (mean over classes of one confusion matrix over the whole split), macro F1 (mean over classes
of F1), overall accuracy, Cohen's kappa and the number of ignored pixels. Writes WORKDIR/evaluation.json,
WORKDIR/figures/confusion_SPLIT.png and WORKDIR/figures/panel_SPLIT.png (with --data: ..._DATA_SPLIT.png). For a file
written by tools.export --format=model (--model), --data names the data set, and results go to the folder --output.

--polygons adds the SpaceNet building score: precision, recall and F1 of buildings as objects (intersection over union
above 0.5, at least 80 pixels, counts pooled over the split). The reference is the stored label raster, in which
touching buildings are one object; the challenge itself compares footprints, so its score differs.
"""

import argparse
import os
from typing import Any

import jax
from ml_collections import ConfigDict

from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.errors import ConfigError, WorkdirError, writing
from hfd_jax.core.parallel import Jit, Pmap, make_parallel
from hfd_jax.core.workdir import Workdir, read_config
from hfd_jax.data.catalogue import find_dataset
from hfd_jax.data.facts import Facts
from hfd_jax.data.pipeline import Reading
from hfd_jax.evaluation import buildings
from hfd_jax.evaluation.evaluator import Evaluator, evaluate_workdir, table
from hfd_jax.inference.model_file import find_model_file, read_model_file
from hfd_jax.inference.restore import check_fits
from hfd_jax.models.base import STRIDE
from hfd_jax.models.registry import ARCHITECTURES
from hfd_jax.train.networks import BASELINES, declared_fields, teacher_folder
from hfd_jax.train.run import open_run
from hfd_jax.train.validate import check_fields
from tools import cli

BATCH, PANELS = 16, 6  # for a model file; for a run, its config sets them


def main(arguments: argparse.Namespace) -> None:
    if arguments.model:
        evaluate_model(arguments)
    else:
        evaluate_run(arguments)


def evaluate_model(arguments: argparse.Namespace) -> None:
    """Evaluates the network in a model file on a prepared data set."""
    refuse(arguments, {"stage": "--workdir", "checkpoint": "--workdir"})
    if not arguments.data or not arguments.output:
        raise ConfigError("--model: also give --data, the data set, and --output, the folder of the results")
    workdir = Workdir(arguments.output)
    if os.path.exists(workdir.config):
        raise WorkdirError(f"{arguments.output} is the workdir of a run; choose another --output")
    path = find_model_file(arguments.model)
    record, _ = read_model_file(path)
    dataset = find_dataset(arguments.data, arguments.data_dir or "data")
    check_fits(record, dataset.facts)
    devices, window = jax.device_count(), arguments.window or 0
    batch_size = arguments.batch_size or devices * -(-BATCH // devices)
    if batch_size < 1 or batch_size % devices:
        raise ConfigError(f"--batch_size={batch_size}: expected a multiple of the {devices} devices")
    if window < 0 or window % STRIDE:
        raise ConfigError(f"--window={window}: expected a multiple of the network's stride {STRIDE}, 0 or more")
    parallel, reading = make_parallel("jit"), Reading(*(band_index(record, dataset.facts, s) for s in ("sar", "eo")))
    evaluator = Evaluator(dataset, arguments.split or "test", reading, parallel, batch_size, window)
    with writing(workdir.root):
        os.makedirs(workdir.root, exist_ok=True)
    label = f"{arguments.data.replace('/', '_')}_{evaluator.split}"
    checkpoints = {record["network"]: (path, "latest")}
    panels = PANELS if arguments.panels is None else arguments.panels
    score(workdir, checkpoints, evaluator, parallel, panels, label, arguments.polygons)


def band_index(record: dict[str, Any], facts: Facts, sensor: str) -> tuple[int, ...]:
    """Positions in the data set of the bands that a network was trained on."""
    return tuple(getattr(facts, f"{sensor}_bands").index(band) for band in record["bands"][sensor])


def refuse(arguments: argparse.Namespace, belongs: dict[str, str]) -> None:
    """Raises ConfigError if an argument is given without the one that it belongs to."""
    for name, other in belongs.items():
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name} applies only to {other}")


def evaluate_run(arguments: argparse.Namespace) -> None:
    """Evaluates the networks of a run."""
    refuse(arguments, {"output": "--model"})
    workdir = Workdir(arguments.workdir)
    config = ConfigDict(read_config(workdir, declared_fields()))
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
        raise WorkdirError(f"{arguments.workdir}: contains no checkpoint of {arguments.stage or 'any network'} yet")
    evaluator = shared.evaluator(config.eval.split)
    score(workdir, checkpoints, evaluator, shared.parallel, config.eval.panels, label, arguments.polygons)


def score(
    workdir: Workdir,
    checkpoints: dict[str, tuple[str, str]],
    evaluator: Evaluator,
    parallel: Jit | Pmap,
    panels: int,
    label: str,
    polygons: str | None,
) -> None:
    """Prints and writes the scores; `polygons` is the class of the building score, "" for the class named building."""
    if polygons is not None:  # checked before the evaluation starts
        polygons = buildings.building_class(evaluator.facts.class_names, polygons)
    results, written = evaluate_workdir(workdir, checkpoints, evaluator, parallel, panels, label)
    print(table(results))
    if polygons is not None:
        scores = buildings.score_workdir(workdir, checkpoints, evaluator, parallel, polygons, label)
        print(buildings.table(scores, polygons))
    print(f"written to {workdir.root}: {', '.join(written)}")


def use_other_data(config: ConfigDict, workdir: Workdir, arguments: argparse.Namespace) -> str:
    """Points the config to the data set of --data, with the bands of the run's networks; returns the result's label."""
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
    """Folders below checkpoints/ that belong to a stage; those of all stages for None."""
    students = [*BASELINES, *ARCHITECTURES, "student"]
    return {"teacher": ["teacher"], "student": students, None: ["teacher", *students]}[stage]


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("evaluate", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="folder of the run")
    source.add_argument("--model", metavar="FILE", help="a model file, or its folder, instead of a workdir")
    parser.add_argument("--output", help="folder of the results with --model; not the workdir of a run")
    parser.add_argument("--stage", choices=("teacher", "student"), help="only the networks of this stage; default: all")
    parser.add_argument("--split", help='split to evaluate; default: that of the run, or "test"')
    parser.add_argument(
        "--checkpoint",
        choices=("latest", "best"),
        help="checkpoint; default: the one that the run evaluated",
    )
    parser.add_argument(
        "--data", help="prepared data set with the same bands, unit and classes; default: that of the run"
    )
    parser.add_argument("--data_dir", help='root of the prepared data sets; default: that of the run, or "data"')
    parser.add_argument("--batch_size", type=int, help="windows per step; default: that of the run, or 16")
    parser.add_argument("--window", type=int, help="side length of the windows, pixels; default: config.eval.window")
    parser.add_argument("--panels", type=int, help="tiles in the figure, 0: no figure; default: that of the run, or 6")
    parser.add_argument(
        "--polygons",
        nargs="?",
        const="",
        metavar="CLASS",
        help="also compute the building score of this class; without CLASS: of the class named building",
    )
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
