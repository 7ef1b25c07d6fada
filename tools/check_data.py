"""Checks a raw data set before preparation and draws a contact sheet.

  python -m tools.check_data my_data
  python -m tools.check_data SN6/train/AOI_11_Rotterdam --splitting=baseline
  python -m tools.check_data terramind --dataset=folder --description=configs/datasets/terramind.json

Reads every tile and reports

- bad tiles, which tools.prepare_data refuses, or leaves out with --skip_bad: missing partners, grids that do not match
  (size, CRS, offset above half a pixel), values that contradict the unit, unknown label codes;
- doubtful tiles, which tools.prepare_data accepts: empty, constant, or without any labelled pixel;
- band statistics and class balance;
- tiles of different splits that show the same ground.

Writes summary.txt, bad_tiles.txt, doubtful_tiles.txt, shared_ground.txt and contact_sheet.png to OUTPUT. Exits with 1
if a tile is bad, if values contradict the unit, or if splits share ground.
"""

import argparse
import dataclasses
import os
import sys

import numpy as np

from hfd_jax.core.errors import ConfigError, writing
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data.inspection import Findings, inspect, summary
from hfd_jax.evaluation import figures
from tools import cli, datasets


def main(arguments: argparse.Namespace) -> None:
    if arguments.tiles < 0:
        raise ConfigError(f"--tiles={arguments.tiles}: expected 0 or more")
    name = arguments.dataset or datasets.recognise(arguments.raw_dir, arguments)
    _, source = datasets.make_source(name, arguments.raw_dir, arguments)
    findings = inspect(source, arguments.workers, arguments.tiles)
    output = arguments.output or os.path.join("checked", source.facts.name)
    with writing(output):
        os.makedirs(output, exist_ok=True)
    text = summary(findings)
    write(os.path.join(output, "summary.txt"), text)
    write(os.path.join(output, "bad_tiles.txt"), "\n".join(f"{split}\t{message}" for split, message in findings.bad))
    doubtful = ["\t".join(line) for line in findings.doubtful]
    write(os.path.join(output, "doubtful_tiles.txt"), "\n".join(doubtful))
    write(os.path.join(output, "shared_ground.txt"), "\n".join("\t".join(line) for line in findings.leaks))
    if findings.examples:
        draw(os.path.join(output, "contact_sheet.png"), findings)
    print(text)
    print(f"written to {output}: {', '.join(sorted(os.listdir(output)))}")
    if not findings.is_clean:
        sys.exit(1)


def write(path: str, text: str) -> None:
    with writing(path), open(path, "w", encoding="utf-8") as file:
        file.write(text + "\n" if text else "")


def draw(path: str, findings: Findings) -> None:
    facts, rows = findings.facts, []
    for tile in findings.examples:
        label = np.full(tile.sar.shape[:2], IGNORE_LABEL, np.uint8) if tile.label is None else tile.label
        rows.append(dataclasses.asdict(tile) | {"label": label})
    figures.panel(path, rows, {}, facts, facts.eo_bands)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("check_data", __doc__)
    parser.add_argument("raw_dir", help="folder of the raw data set")
    parser.add_argument("--dataset", choices=datasets.NAMES, help="data set; default: recognised from the layout")
    parser.add_argument("--output", help="folder to write to; default: checked/NAME")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="number of processes")
    parser.add_argument("--tiles", type=int, default=6, help="number of tiles in the contact sheet")
    datasets.add_options(parser)
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
