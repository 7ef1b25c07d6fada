"""Checks a raw data set and writes it as a TFDS array_record data set, which training reads.

  python -m tools.prepare_data --dataset=folder --raw_dir=my_data --data_dir=data
  python -m tools.prepare_data --dataset=spacenet6 --raw_dir=SN6/train/AOI_11_Rotterdam --data_dir=data
  python -m tools.prepare_data --dataset=sen12ms --raw_dir=SEN12MS --classes=dfc2020 --data_dir=data
  python -m tools.prepare_data --dataset=dfc2020 --raw_dir=DFC2020 --classes=dfc2020 --data_dir=data
  python -m tools.prepare_data --dataset=whu_opt_sar --raw_dir=whu-opt-sar --data_dir=data
  python -m tools.prepare_data --dataset=scenes --size=128 --looks=4 --data_dir=data

folder: your own GeoTIFF pairs, described by my_data/dataset.json (docs/data.md explains every key).
spacenet6, sen12ms, dfc2020, whu_opt_sar: as downloaded; hfd_jax/data/NAME.py (dfc2020: sen12ms.py) documents the
layout, the splits and the classes.
scenes: simulated pairs; main.py also prepares them on demand.

Every tile is checked before it is written. The first bad tile stops the preparation with an error that names the tile
and the problem; with --skip_bad, bad tiles are left out and listed in skipped.txt beside the data. The data set appears
only once it is complete; after an interruption, the same command continues. The last line shows the value of
config.data.name.

On a cluster, Apache Beam writes the same shards (tools/env pip install -r requirements-beam.txt -c constraints.txt).
--data_dir must then be a folder that all workers share. --beam_runner=DirectRunner runs Beam on this machine alone.
"""

import argparse
import os
from pathlib import Path

from hfd_jax.core.errors import DataError, UserError, writing
from hfd_jax.core.options import options_of
from hfd_jax.data import catalogue
from hfd_jax.data.builder import prepare
from hfd_jax.data.simulator import SceneOptions
from tools import cli, datasets


def main(arguments: argparse.Namespace) -> None:
    if arguments.dataset == "scenes":
        builder, source = catalogue.Scenes, scene_source(arguments)
    elif arguments.raw_dir:
        builder, source = datasets.make_source(arguments.dataset, arguments.raw_dir, arguments, simulated=True)
    else:
        raise UserError(f"--dataset={arguments.dataset} needs --raw_dir, the folder of the raw data")
    directory = prepare(
        builder,
        source,
        arguments.data_dir,
        workers=arguments.workers,
        skip_bad=arguments.skip_bad,
        overwrite=arguments.overwrite,
        beam=beam_options(arguments) if arguments.beam_runner else None,
    )
    dataset = catalogue.read_dataset(directory)
    print(summary(dataset))
    list_skipped(dataset)
    name = os.path.relpath(os.path.dirname(directory), arguments.data_dir)
    print(f"written to {directory}\nuse it with: --config.data.name={name} --config.data.dir={arguments.data_dir}")


def beam_options(arguments: argparse.Namespace):
    """Returns Apache Beam's options. Raises UserError if Beam is not installed."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions  # noqa: PLC0415 - large, and rarely installed
    except ImportError as error:
        raise UserError(
            f"--beam_runner needs Apache Beam ({error}): "
            "tools/env pip install -r requirements-beam.txt -c constraints.txt"
        ) from error
    return PipelineOptions([f"--runner={arguments.beam_runner}", *arguments.beam_option])


def list_skipped(dataset: catalogue.Dataset) -> None:
    lines = [f"{split}\t{message}" for split, messages in dataset.skipped.items() for message in messages]
    if lines:
        path = os.path.join(dataset.directory, "skipped.txt")
        text = "\n".join(lines) + "\n"
        if not (os.path.exists(path) and Path(path).read_text(encoding="utf-8") == text):  # it may be read-only by now
            with writing(path):
                Path(path).write_text(text, encoding="utf-8")
        print(f"left out: {len(lines)} bad tile(s), listed in {path}")


def scene_source(arguments: argparse.Namespace) -> catalogue.SceneSource:
    given = datasets.given_options("scenes", arguments, simulated=True)
    counts = {split: given.pop(split) for split in options_of(catalogue.SceneSource) if split in given}
    try:
        options = SceneOptions(**given)
    except ValueError as error:
        raise DataError(str(error)) from error
    return catalogue.SceneSource(options, **counts)


def summary(dataset: catalogue.Dataset) -> str:
    """Tiles per split, band statistics and class shares, as text."""
    facts, statistics = dataset.facts, dataset.statistics
    lines = ["tiles: " + ", ".join(f"{count} {split}" for split, count in dataset.sizes.items())]
    for sensor, unit in (("sar", facts.sar_unit), ("eo", facts.eo_dtype)):
        bands = getattr(statistics, sensor)
        for name, mean, std in zip(getattr(facts, f"{sensor}_bands"), bands.mean, bands.std, strict=True):
            lines.append(f"{sensor} {name}: mean {mean:.4g}, std {std:.4g} ({unit})")
    total = max(sum(statistics.class_pixels), 1)
    lines += [f"left out of the splits: {count} tiles {reason}" for reason, count in dataset.left_out.items()]
    lines += [f"note: {note}" for note in dataset.notes]
    for splits, count in dataset.shared_ground.items():
        lines.append(f"caution: {count} tile(s) of {splits} show the same ground")
    shares = zip(facts.class_names, statistics.class_pixels, strict=True)
    # A data set for evaluation alone is measured as a whole.
    training = "training " if dataset.sizes.get("train") else ""
    lines.append(f"labelled {training}pixels: " + ", ".join(f"{name} {100 * n / total:.1f} %" for name, n in shares))
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("prepare_data", __doc__)
    parser.add_argument("--dataset", required=True, choices=(*datasets.NAMES, "scenes"), help="data set to prepare")
    parser.add_argument("--raw_dir", help="folder of the raw data")
    parser.add_argument("--data_dir", default="data", help="root of the prepared data sets")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="number of processes")
    parser.add_argument(
        "--beam_runner", help="Apache Beam runner to use instead of --workers: DirectRunner, FlinkRunner, ..."
    )
    parser.add_argument(
        "--beam_option",
        action="append",
        default=[],
        help="option of the runner, as --beam_option=--KEY=VALUE; repeatable",
    )
    parser.add_argument("--skip_bad", action="store_true", help="leave out and list bad tiles instead of stopping")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set with other settings")
    datasets.add_options(parser, simulated=True)
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
