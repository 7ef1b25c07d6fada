"""Writes the result tables of README.md and docs/results.md from docs/results/, and checks the figures in their text.

  python -m tools.results             lists the figures of the text that no stored result supports
  python -m tools.results --update    writes the tables first

docs/results/NAME.json is what tools.compare --results=docs/results writes. A table stands between two comments,
<!-- results NAME ... --> and <!-- results end -->; several names are the folds of one sweep. With "curves" instead of
the first "results", the table has a row per point of the sweep's axis. A figure of the text is a number with three
decimals (mIoU, IoU, F1, p) or a number of points with one decimal.
"""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hfd_jax.core.errors import UserError
from hfd_jax.experiments import stored, tables
from hfd_jax.experiments.pooling import pooled
from hfd_jax.experiments.stored import Stored
from tools import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "results.md")
RESULTS = ROOT / "docs" / "results"
TABLE = re.compile(r"(<!-- (results|curves) ([\w/ ]+) -->\n)(.*?)(<!-- results end -->)", re.DOTALL)
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
FIGURE = re.compile(r"(?<![\w.])[01]\.\d{3}(?![\w.])|\d+\.\d(?= points?\b)")


def main(arguments: argparse.Namespace) -> None:
    texts = {document: document.read_text(encoding="utf-8") for document in DOCUMENTS}
    if arguments.update:
        texts = {document: filled(text) for document, text in texts.items()}
        for document, text in texts.items():
            document.write_text(text, encoding="utf-8")
            print(f"written: {document}")
    known = supported(texts.values())
    wrong = [f"{document.name}: {figure}" for document, text in texts.items() for figure in unsupported(text, known)]
    if wrong:
        sys.exit("no result in docs/results supports " + "; ".join(wrong))


def filled(text: str) -> str:
    """The document with its tables made from the stored results."""
    return TABLE.sub(lambda found: f"{found[1]}{table(found[2], found[3].split())}\n{found[5]}", text)


def table(kind: str, names: list[str]) -> str:
    """The Markdown table of one or several results files, by name."""
    found = pooled([stored.read(str(RESULTS / f"{name}.json")) for name in names])
    if kind == "curves" and not found.sweep.axis:
        raise UserError(f"{names[0]}: a sweep without an axis has no curves")
    if kind == "curves":
        return tables.markdown(tables.curve_table(found.lines, found.sweep))
    return tables.markdown(tables.score_table(found.lines, found.unit))


def supported(texts: Iterable[str]) -> set[str]:
    """Every figure of the results behind the tables of the documents, of each file and pooled."""
    known: set[str] = set()
    for found in (found for text in texts for found in TABLE.finditer(text)):
        parts = [stored.read(str(RESULTS / f"{name}.json")) for name in found[3].split()]
        known |= set().union(*map(figures, [*parts, pooled(parts)]))
    return known


def unsupported(text: str, known: set[str]) -> list[str]:
    """The figures of the text, outside tables and code, that are not known."""
    words = CODE.sub("", TABLE.sub("", text))
    return [figure for figure in FIGURE.findall(words) if figure not in known]


def figures(found: Stored) -> set[str]:
    """Every figure of a results file as text may quote it, without its sign."""
    values: list[float | None] = []
    for line in found.lines:
        values += [line.mean_iou, line.half_width, line.macro_f1, line.gain, line.gain_half_width, line.corrected_p]
        values += line.iou.values()
    values += [result.mean_iou for runs in found.results.values() for result in runs.values()]
    known = [abs(value) for value in values if value is not None and not np.isnan(value)]
    return {f"{value:.3f}" for value in known} | {f"{100 * value:.1f}" for value in known}


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("results", __doc__)
    parser.add_argument("--update", action="store_true", help="write the tables into the documents")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
