"""Writes one self-contained HTML page about one or more runs.

  python -m tools.report --workdir=runs/quickstart
  python -m tools.report --workdir=runs/quickstart runs/other --output=comparison.html
  python -m tools.report --workdir=runs/sen12ms --split=validation --limit=500

The page has the scores of all networks, learning curves of everything that was logged, confusion matrices, the best and
the worst tiles with maps and errors, how alike the student's features are to the teacher's, throughput, and the config;
of several runs also the fields in which they differ. It needs no network and no other file. Runs that are not finished
are shown as far as they are; what is missing is said on the page and printed.

The networks are run over the split once, from the checkpoints that the run evaluates (config.eval.checkpoint); nothing
is written but the page.
"""

import argparse
import math
import os

import jax

from configs import default
from hfd_jax.core.errors import ConfigError
from hfd_jax.core.parallel import Jit, enable_compilation_cache
from hfd_jax.core.workdir import jsonable
from hfd_jax.experiments.report import page
from hfd_jax.experiments.report.records import read_runs
from hfd_jax.experiments.report.survey import make_survey
from tools import cli


def main(arguments: argparse.Namespace) -> None:
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
        print(f"{run.name}: looking at split {run.split}", flush=True)
        # A batch is shared out evenly among the devices.
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
    parser.add_argument(
        "--workdir", required=True, nargs="+", action="extend", help="of a run, as main.py was given it; or several"
    )
    parser.add_argument("more", nargs="*", help="further workdirs")
    parser.add_argument("--output", help="HTML file to write; default: report.html in the first workdir")
    parser.add_argument("--split", help="of the data sets; default: each run's config.eval.split")
    parser.add_argument("--tiles", type=int, default=6, help="so many of the best tiles and so many of the worst")
    parser.add_argument("--limit", type=int, default=0, help="look at so many tiles, spread over the split; 0: at all")
    parser.add_argument("--data_dir", help="root of the prepared data sets; default: config.data.dir")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
