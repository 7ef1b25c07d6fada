"""Lists the options of every distillation method and architecture: default, meaning and limits.

  python -m tools.options                  prints the tables of docs/methods.md and docs/architectures.md
  python -m tools.options --update         writes them into these files
  python -m tools.options --method=hfd     only one method

Each option is a field of the config: config.distill.METHOD.OPTION or config.model.OPTION. The class that uses an option
declares it (hfd_jax/distill/, hfd_jax/models/), so these tables cannot differ from the code.
"""

import argparse
import re
from pathlib import Path

import pandas as pd

from hfd_jax.core.errors import UserError, nearest
from hfd_jax.core.options import options_of
from hfd_jax.distill.registry import METHODS
from hfd_jax.models.registry import ARCHITECTURES
from tools import cli

DOCS = Path(__file__).parents[1] / "docs"
MARKER = re.compile(r"(<!-- fields -->\n)(.*?)(<!-- fields end -->)", re.DOTALL)


def main(arguments: argparse.Namespace) -> None:
    if arguments.method and arguments.method not in METHODS:
        raise UserError(f"--method={arguments.method} is unknown; {nearest(arguments.method, METHODS)}")
    if arguments.method:
        print(method_table([arguments.method]))
    elif arguments.update:
        for name, text in tables().items():
            path = DOCS / name
            path.write_text(filled(path.read_text(encoding="utf-8"), text), encoding="utf-8")
            print(f"written: {path}")
    else:
        print("\n\n".join(tables().values()))


def tables() -> dict[str, str]:
    """File name below docs/ -> its table in Markdown."""
    return {"methods.md": method_table(list(METHODS)), "architectures.md": architecture_table()}


def filled(document: str, table: str) -> str:
    """The document with the table between its markers."""
    return MARKER.sub(lambda found: f"{found[1]}{table}\n{found[3]}", document)


def method_table(names: list[str]) -> str:
    rows = [
        {"field": f"`distill.{name}.{option}`", **_columns(declared)}
        for name in names
        for option, declared in options_of(METHODS[name]).items()
    ]
    return pd.DataFrame(rows).to_markdown(index=False)


def architecture_table() -> str:
    """One row per option; architectures that share an option and its declaration share the row."""
    rows: dict[tuple, list[str]] = {}
    for name, network in ARCHITECTURES.items():
        for option, declared in options_of(network).items():
            rows.setdefault((f"`model.{option}`", *_columns(declared).items()), []).append(name)
    lines = [{"field": field, "used by": ", ".join(names), **dict(rest)} for (field, *rest), names in rows.items()]
    return pd.DataFrame(lines).sort_values("field", kind="stable").to_markdown(index=False)


def _columns(declared) -> dict[str, str]:
    return {"default": f"`{declared.default!r}`", "meaning": declared.meaning, "limits": declared.limits}


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("options", __doc__)
    parser.add_argument("--method", help="a distillation method, as in config.distill.method")
    parser.add_argument("--update", action="store_true", help="write the tables into docs/")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
