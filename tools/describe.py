"""Drafts the description of a folder of rasters, dataset.json, from what lies there.

  python -m tools.describe my_data
  python -m tools.describe my_data --output=my_data.json

Finds the patterns of the file names, tells SAR, EO and labels apart by names, bands and values, proposes the unit of
SAR, lists the codes of the labels, and proposes a split. Lines that begin with // say what to check. Correct the draft,
then run tools.check_data. docs/data.md explains every key.
"""

import argparse
import json
import os

from hfd_jax.core.errors import DataError, WorkdirError, writing
from hfd_jax.data.described.draft import draft
from tools import cli


def main(arguments: argparse.Namespace) -> None:
    if not os.path.isdir(arguments.raw_dir):
        raise DataError(f"{arguments.raw_dir}: no such folder")
    path = arguments.output or os.path.join(arguments.raw_dir, "dataset.json")
    if os.path.exists(path) and not arguments.overwrite:
        raise WorkdirError(f"{path}: exists; --overwrite replaces it, --output names another file")
    text = formatted(draft(arguments.raw_dir))
    with writing(path), open(path, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    print(text)
    option = f" --dataset=folder --description={arguments.output}" if arguments.output else ""
    print(f"written: {path}; correct it, then run: python -m tools.check_data {arguments.raw_dir}{option}")


def formatted(value: object, indent: int = 0, width: int = 100) -> str:
    """JSON with short lists and objects in one line."""
    line = json.dumps(value, ensure_ascii=False)
    if indent and len(line) + indent <= width:
        return line
    space = " " * (indent + 2)
    if isinstance(value, dict):
        rows = [f"{space}{json.dumps(key)}: {formatted(entry, indent + 2)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"
    if isinstance(value, list):
        return "[\n" + ",\n".join(space + formatted(entry, indent + 2) for entry in value) + "\n" + " " * indent + "]"
    return line


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("describe", __doc__)
    parser.add_argument("raw_dir", help="folder of the raw data")
    parser.add_argument("--output", help="file to write; default: RAW_DIR/dataset.json")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
