"""Writes one self-contained HTML page about one or more runs, or about a sweep.

  python -m tools.report --workdir=runs/quickstart
  python -m tools.report --workdir=runs/quickstart runs/other --output=comparison.html
  python -m tools.report --workdir=runs/sen12ms --split=validation --limit=500
  python -m tools.report --sweep=runs/compare/students.json
  python -m tools.report --sweep runs/ombria_0/ombria.json runs/ombria_1/ombria.json --output=ombria.html

The page shows the scores of all networks, learning curves of all logged quantities, confusion matrices, the best and
worst tiles with maps and errors, the similarity of student and teacher features, throughput, and the config. For
several runs, it also lists the config fields that differ. The page works offline and needs no other file. It also
covers unfinished runs; the page and the output list what is missing.

The tool runs each network over the split once, from the checkpoint that the run evaluates (config.eval.checkpoint), and
writes only the page.

With --sweep, the page shows the results that tools.compare stored: every row with its interval, difference and
corrected p value, pictures, IoU per class, every seed, and the command. Several files are the folds of one sweep: each
counts once, with the mean of its seeds, and intervals are over folds. Only --output applies to it.
"""

import argparse
import math
import os

import jax

from configs import default
from hfd_jax.core.errors import ConfigError
from hfd_jax.core.parallel import Jit, enable_compilation_cache
from hfd_jax.core.workdir import jsonable
from hfd_jax.experiments import stored
from hfd_jax.experiments.pooling import pooled
from hfd_jax.experiments.report import page, sweep_page
from hfd_jax.experiments.report.records import read_runs
from hfd_jax.experiments.report.survey import make_survey
from tools import cli


def main(arguments: argparse.Namespace) -> None:
    if bool(arguments.sweep) == bool(arguments.workdir):
        raise ConfigError("expected either --workdir (a page about runs) or --sweep (a page about a sweep)")
    if arguments.sweep:
        about_sweep(arguments.sweep, arguments.output or f"{os.path.splitext(arguments.sweep[0])[0]}.html")
    else:
        about_runs(arguments)


def about_sweep(sources: list[str], path: str) -> None:
    """Writes the page of a results file of tools.compare, or of several for the folds of one sweep."""
    page.check_writable(path)
    page.write(path, sweep_page.render(pooled([stored.read(source) for source in sources])))
    print(f"written: {path}")


def about_runs(arguments: argparse.Namespace) -> None:
    for name in ("tiles", "limit"):
        if getattr(arguments, name) < 0:
            raise ConfigError(f"--{name}={getattr(arguments, name)}: expected 0 or more")
    path = arguments.output or os.path.join(arguments.workdir[0], "report.html")
    enable_compilation_cache()
    defaults = jsonable(default.get_config().to_dict())
    runs = read_runs([*arguments.workdir, *arguments.more], defaults, arguments.split)
    page.check_writable(path)
    surveys = []
    for run in runs:
        print(f"{run.name}: evaluating split {run.split}", flush=True)
        # The number of devices must divide the batch size.
        devices = jax.local_devices()[: math.gcd(jax.local_device_count(), run.config.eval.batch_size)]
        surveys.append(make_survey(run, arguments.data_dir, arguments.tiles, arguments.limit, Jit(devices)))
    text = page.render(runs, surveys, defaults)
    page.write(path, text)
    for run in runs:
        for remark in run.remarks:
            print(f"{run.name}: {remark}")
    print(f"written: {path} ({len(text.encode()) / 1e6:.1f} MB)")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("report", __doc__)
    parser.add_argument("--workdir", nargs="+", action="extend", default=[], help="workdir of one or more main.py runs")
    parser.add_argument("--sweep", nargs="+", help="results files of tools.compare, WORKDIR/SWEEP.json; several: folds")
    parser.add_argument("more", nargs="*", help="further workdirs")
    parser.add_argument("--output", help="HTML file to write; default: report.html in the first workdir, or SWEEP.html")
    parser.add_argument("--split", help="split to evaluate; default: each run's config.eval.split")
    parser.add_argument("--tiles", type=int, default=6, help="number of best tiles and of worst tiles to show")
    parser.add_argument("--limit", type=int, default=0, help="tiles to evaluate, spread over the split; 0: all")
    parser.add_argument("--data_dir", help="root of the prepared data sets; default: config.data.dir")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
