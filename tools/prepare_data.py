"""Checks a raw data set and writes it as a TFDS array_record data set, which training reads.

  python -m tools.prepare_data --dataset=folder --raw_dir=my_data --data_dir=data
  python -m tools.prepare_data --dataset=scenes --size=128 --looks=4 --data_dir=data

folder: your own GeoTIFF pairs, described by my_data/dataset.json (hfd_jax/data/folder.py shows every key).
scenes: simulated pairs; main.py also makes them by itself.

Every tile is checked before it is written; the first bad one stops the preparation with its name and what is wrong.
A preparation that is interrupted leaves nothing behind that looks complete. The last line says what to put into
config.data.name.
"""

import argparse
import dataclasses
import os

from hfd_jax.data import catalogue
from hfd_jax.data.builder import prepare
from hfd_jax.data.folder import Folder, FolderSource
from hfd_jax.data.scenes import SceneOptions
from hfd_jax.errors import DataError, UserError
from tools import cli

DESCRIPTIONS = {
    "size": "edge of a tile, pixels",
    "pixel_size": "metres",
    "looks": "of the speckle",
    "incidence": "of the radar against the vertical, degrees",
    "misregistration": "shift of the optical image, pixels",
    "unlabelled_share": "of the training tiles",
    "seed": "changes every tile",
}


def main(arguments: argparse.Namespace) -> None:
    if arguments.dataset == "scenes":
        builder, source = catalogue.Scenes, scene_source(arguments)
    else:
        if not arguments.raw_dir:
            raise UserError("--dataset=folder needs --raw_dir, the folder that holds sar/, eo/ and label/")
        builder, source = Folder, FolderSource(arguments.raw_dir, arguments.description)
    directory = prepare(
        builder,
        source,
        arguments.data_dir,
        workers=arguments.workers,
        skip_bad=arguments.skip_bad,
        overwrite=arguments.overwrite,
    )
    dataset = catalogue.read_dataset(directory)
    print(summary(dataset))
    name = os.path.relpath(os.path.dirname(directory), arguments.data_dir)
    print(f"written to {directory}\nuse it with: --config.data.name={name} --config.data.dir={arguments.data_dir}")


def scene_source(arguments: argparse.Namespace) -> catalogue.SceneSource:
    names = [field.name for field in dataclasses.fields(SceneOptions)]
    try:
        options = SceneOptions(**{name: getattr(arguments, name) for name in names})
    except ValueError as error:
        raise DataError(str(error)) from error
    return catalogue.SceneSource(options, arguments.train, arguments.validation, arguments.test)


def summary(dataset: catalogue.Dataset) -> str:
    """Tiles per split, band statistics and class shares, as text."""
    facts, statistics = dataset.facts, dataset.statistics
    lines = ["tiles: " + ", ".join(f"{count} {split}" for split, count in dataset.sizes.items())]
    for sensor, unit in (("sar", facts.sar_unit), ("eo", facts.eo_dtype)):
        bands = getattr(statistics, sensor)
        for name, mean, std in zip(getattr(facts, f"{sensor}_bands"), bands.mean, bands.std, strict=True):
            lines.append(f"{sensor} {name}: mean {mean:.4g}, std {std:.4g} ({unit})")
    total = max(sum(statistics.class_pixels), 1)
    shares = zip(facts.class_names, statistics.class_pixels, strict=True)
    lines.append("labelled training pixels: " + ", ".join(f"{name} {100 * n / total:.1f} %" for name, n in shares))
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("prepare_data", __doc__)
    parser.add_argument("--dataset", required=True, choices=("folder", "scenes"), help="kind of data set")
    parser.add_argument("--raw_dir", help="folder: where the GeoTIFFs are")
    parser.add_argument("--description", help="folder: the description, if it is not RAW_DIR/dataset.json")
    parser.add_argument("--data_dir", default="data", help="root of the prepared data sets")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that read and write")
    parser.add_argument("--skip_bad", action="store_true", help="leave out and list bad tiles instead of stopping")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set made from something else")
    scenes = parser.add_argument_group("scenes", "options of the simulated data set")
    for field in dataclasses.fields(SceneOptions):
        scenes.add_argument(f"--{field.name}", type=field.type, default=field.default, help=DESCRIPTIONS[field.name])
    for split, count in (("train", 600), ("validation", 100), ("test", 200)):
        scenes.add_argument(f"--{split}", type=int, default=count, help=f"{split} tiles")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
