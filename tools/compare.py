"""Trains the rows of a sweep with several seeds each and compares their results.

  python -m tools.compare --workdir=runs/compare --seeds=5
  python -m tools.compare --sweep=configs/sweeps/distillation_methods.py --workdir=runs/compare --seeds=3
  python -m tools.compare --sweep=configs/sweeps/label_efficiency.py --workdir=runs/compare --at_once=2
  python -m tools.compare --config=configs/sen12ms.py --workdir=runs/sen12ms_compare --config.optim.learning_rate=5e-4

A sweep (configs/sweeps/) varies one config: its own, or the one given by --config; --config.FIELD=VALUE applies to all
rows. Each row and seed is a separate run below WORKDIR. Rows share one teacher per seed unless they differ in a field
that the teacher depends on, and sweeps of the same config in the same WORKDIR share runs. The seed determines
initialisation, order, crops and, if data.label_share is below 1, the choice of labels. If the data set has a validation
split, every row counts at its checkpoint with the best mIoU there, so that no row suffers from too many steps
(--config.train.eval_every=0: at its last step); train.checkpoint_every is the number of steps between two candidates.
The tool reuses finished runs, resumes interrupted ones, and reports a failed run at the end without stopping the
others. (If the system kills a worker process, for example out of memory, the tool stops with an error.) All configs are
checked before the first run starts. If the tool is stopped, it writes the tables of the finished runs.

Writes WORKDIR/SWEEP.md, .csv (unrounded), .tex and .png: mIoU with its 95 % interval over seeds, the paired difference
to the reference row with a t test (Holm's correction over the rows), the share of the gap to the teacher that a row
closes, IoU per class, and the cost of each row: parameters, training time of its own steps at the best decile of the
logged rates (without its teacher's) and inference speed. SWEEP_speed.png shows mIoU over inference speed if the rows
differ in it. SWEEP.json has the scores of every run; tools.report makes a page of it (--sweep). --results=FOLDER
writes it there, for results that are kept.
"""

import argparse
import functools
import os
import shlex
import signal
import sys

import jax
from ml_collections import ConfigDict

from configs import default
from hfd_jax.core import startup
from hfd_jax.core.errors import ConfigError, StoppedError, UserError, writing
from hfd_jax.core.parallel import make_parallel
from hfd_jax.core.workdir import Workdir, package_versions
from hfd_jax.evaluation.speed import inference_speed, made_up_images
from hfd_jax.experiments import figure, runner, statistics, stored, sweep, tables
from hfd_jax.experiments.statistics import Results
from hfd_jax.experiments.stored import Stored
from hfd_jax.experiments.sweep import Job, Sweep
from hfd_jax.inference.restore import load_network
from hfd_jax.train import config_flags
from hfd_jax.train.run import check_config, describe_data
from tools import cli


def main(arguments: argparse.Namespace) -> None:
    for name in ("seeds", "at_once"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}: expected at least 1")
    chosen = sweep.read_sweep(arguments.sweep)
    if arguments.rows:
        chosen = sweep.reduced(chosen, arguments.rows)
    base = config_flags.config(default.get_config())
    select_on_validation(base)
    check_choices(chosen, base)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    jobs = sweep.plan(chosen, base, seeds, arguments.workdir)
    check_all(jobs, jax.device_count() if arguments.at_once == 1 else 1)
    write_finished = functools.partial(
        write_tables, chosen, jobs, arguments.workdir, results_file(arguments, chosen), base.eval.split
    )
    try:
        failed = runner.run_all(jobs, arguments.at_once, lambda text: print(text, flush=True))
    except (StoppedError, KeyboardInterrupt):
        with startup.handled(lambda *_: None, but=(signal.SIGINT,)):  # a scheduler repeats its signal
            write_finished(timed=False)
        raise
    write_finished()
    for job, error in failed:
        print(f"error: {job.title}: {error}", file=sys.stderr)
    if failed:
        sys.exit(1)


def select_on_validation(config: ConfigDict) -> None:
    """Lets every row be judged at its checkpoint with the best validation mIoU, if the data set has such a split."""
    if config.train.eval_every and "validation" in describe_data(config)[1]:
        config.eval.checkpoint = config.teacher.which = "best"


def check_choices(chosen: Sweep, base: ConfigDict) -> None:
    """Raises ConfigError if rows are compared with a choice that nothing can make."""
    for field, name in (("REFERENCE", chosen.reference), ("FLOOR", chosen.floor)):
        if name in chosen.choices and base.eval.checkpoint != "best":
            raise ConfigError(
                f"sweep {chosen.name}: {field} is {name!r}, which is chosen on the validation split; expected a data "
                "set with such a split, and config.train.eval_every other than 0"
            )


def check_all(jobs: list[Job], devices: int) -> None:
    """Checks every run before the first is trained; raises ConfigError that lists all problems."""
    rows_of: dict[str, list[str]] = {}  # problem -> rows that have it
    failed = 0
    for job in jobs:
        try:
            check_config(job.config, devices, Workdir(job.root))
        except UserError as error:
            failed += 1
            rows_of.setdefault(str(error), []).append(job.row or "teacher")
    if failed:
        lines = [f"{', '.join(dict.fromkeys(rows))}: {problem}" for problem, rows in rows_of.items()]
        raise ConfigError(f"{failed} of {len(jobs)} runs cannot be trained, nothing was started. " + "; ".join(lines))


def results_file(arguments: argparse.Namespace, chosen: Sweep) -> str:
    """Path of the JSON file with the results, in a folder that exists."""
    folder = arguments.results or arguments.workdir
    with writing(folder):
        os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, f"{chosen.name}.json")


def write_tables(chosen: Sweep, jobs: list[Job], root: str, path: str, split: str, timed: bool = True) -> None:
    """Writes the results, tables and figures of the finished runs, if any; without inference speeds if not `timed`."""
    results = statistics.with_choices(statistics.collect(jobs), chosen)
    if results:
        places = places_of(chosen, jobs, results) if chosen.axis else {}
        speed = speeds(jobs, results) if timed else {}
        command = shlex.join(["python", "-m", "tools.compare", *sys.argv[1:]])
        found = Stored(chosen, command, split, results, speed, places, package_versions())
        write(found, root)
        stored.write(path, found)
        print(f"written: {path}")


def places_of(chosen: Sweep, jobs: list[Job], results: Results) -> dict[str, float]:
    """row -> value on the sweep's axis; a choice is at the place of the rows that it chooses from."""
    points = {sweep.point(job.row): sweep.value_at(job.config, chosen.axis) for job in jobs if job.row in results}
    return {row: points[sweep.point(row)] for row in results}


def write(found: Stored, root: str) -> None:
    """Writes the tables and the figures; prints the Markdown tables."""
    chosen, results, lines = found.sweep, found.results, found.lines
    shown = [tables.score_table(lines), tables.class_table(lines)]
    texts = {
        "md": "\n\n".join([*map(tables.markdown, shown), tables.verdict(lines, chosen.reference)]).rstrip("\n"),
        "tex": "\n".join(map(tables.latex, shown)).rstrip("\n"),
        "csv": tables.comma_separated(lines).rstrip("\n"),
    }
    print(texts["md"])
    stem = os.path.join(root, chosen.name)
    for ending, text in texts.items():
        with writing(f"{stem}.{ending}"), open(f"{stem}.{ending}", "w", encoding="utf-8") as file:
            file.write(text + "\n")
    figure.draw(f"{stem}.png", lines, results, chosen, found.places)
    has_speeds = figure.draw_speed(f"{stem}_speed.png", lines, chosen)
    print(f"written: {stem}.md, .tex, .csv, .png" + (f"; {stem}_speed.png" if has_speeds else ""))


def speeds(jobs: list[Job], results: Results) -> dict[str, float]:
    """row -> inference speed (Mpixel/s) at the training batch and crop, measured once per distinct network."""
    parallel, measured, rows = make_parallel("jit"), {}, {}
    for job in jobs:
        if job.row in results and job.row not in rows and job.seed in results[job.row]:
            network = load_network(Workdir(job.root).checkpoints(job.network), job.which, parallel)
            key = (network.model, network.sensor)
            if key not in measured:
                batch = made_up_images(network, job.config.data.batch_size, job.config.data.crop)
                measured[key] = inference_speed(network, batch, parallel)
            rows[job.row] = measured[key]
    return rows


def config_of_sweep(arguments: argparse.Namespace) -> str:
    return sweep.read_sweep(arguments.sweep).config


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("compare", __doc__)
    parser.add_argument("--sweep", default="configs/sweeps/students.py", help="sweep file")
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="only these rows, curves or choices, and the reference"
    )
    parser.add_argument("--workdir", required=True, help="folder for the runs and the tables")
    parser.add_argument("--results", help="folder for SWEEP.json, the results of every run; default: the workdir")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first_seed", type=int, default=0, help="first of the consecutive seeds")
    parser.add_argument(
        "--at_once",
        type=int,
        default=1,
        help="number of parallel runs, each on its own GPU (at most the number of GPUs) or its own share of the cores",
    )
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main, with_config=True, default_config=config_of_sweep)
