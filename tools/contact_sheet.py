"""Draws tiles of a prepared data set as SAR | EO | label.

  python -m tools.contact_sheet --data=data/folder/my_data/1.0.0 --output=my_data.png
  python -m tools.contact_sheet --data=data/scenes/... --split=test --tiles=6 --output=scenes.png

--data is the folder that tools.prepare_data printed. Each picture is stretched between the 2nd and 98th percentile of
its valid pixels; pixels without data or label are black.
"""

import argparse

import numpy as np

from hfd_jax.core.errors import ConfigError
from hfd_jax.data.catalogue import read_dataset
from hfd_jax.evaluation import figures
from tools import cli


def main(arguments: argparse.Namespace) -> None:
    if arguments.tiles < 1:
        raise ConfigError(f"--tiles={arguments.tiles}: expected 1 or more")
    dataset = read_dataset(arguments.data)
    source, size = dataset.source(arguments.split), dataset.size(arguments.split)
    chosen = np.linspace(0, size - 1, min(arguments.tiles, size)).round().astype(int)
    figures.panel(arguments.output, [source[int(i)] for i in chosen], {}, dataset.facts, dataset.facts.eo_bands)
    print(f"written: {arguments.output} ({len(chosen)} of {size} {arguments.split} tiles)")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("contact_sheet", __doc__)
    parser.add_argument("--data", required=True, help="folder of a prepared data set, with its version")
    parser.add_argument("--split", default="train", help="split to draw")
    parser.add_argument("--tiles", type=int, default=4, help="number of tiles, spread over the split")
    parser.add_argument("--output", required=True, help="PNG file to write")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
