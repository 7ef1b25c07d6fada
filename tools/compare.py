"""Trains a config with several seeds and tabulates teacher, baselines and HFD student.

  python -m tools.compare --config=configs/quickstart.py --workdir=runs/compare --seeds=5
  python -m tools.compare --config=configs/quickstart.py --workdir=runs/compare_full --config.data.label_share=1.0

Every seed is a run of its own in WORKDIR/seed_K, with both baselines (the SAR-only student, and the student that starts
from the teacher's weights), all students on the same budget. The seed decides initialisation, order, crops and, where
label_share is below 1, which labels are used. Finished runs are taken as they are, interrupted ones resume. Writes
WORKDIR/table_SPLIT.md and WORKDIR/results_SPLIT.json; the 95 % intervals are Student's t over seeds.
"""

import argparse
import json
import os

import jax
import numpy as np
from scipy import stats

from configs import default
from hfd_jax import assembly, config_flags, train
from hfd_jax.errors import ConfigError, UserError
from hfd_jax.workdir import Workdir, check_claim, read_json, write_json
from tools import cli

REFERENCE = "sar_only"


def main(arguments: argparse.Namespace) -> None:
    config = config_flags.config(default.get_config()).copy_and_resolve_references()
    config.baselines = tuple(assembly.BASELINES)
    if config.stage == "teacher":
        raise ConfigError("config.stage is 'teacher': a comparison needs students too; choose 'all'")
    if arguments.seeds < 1:
        raise UserError(f"--seeds is {arguments.seeds}: expected at least 1")
    rows: dict[str, list[dict]] = {}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        workdir = Workdir(os.path.join(arguments.workdir, f"seed_{seed}"))
        config.seed = seed
        check_claim(workdir, config)
        if not is_finished(workdir, config):
            print(f"--- seed {seed} ({arguments.workdir})", flush=True)
            train.run(config, workdir.root)
            jax.clear_caches()
        for name, row in read_json(workdir.evaluation)[config.eval.split].items():
            rows.setdefault(name, []).append(row)
    text = table(rows)
    print(text)
    split = config.eval.split
    write_json(os.path.join(arguments.workdir, f"results_{split}.json"), rows)
    with open(os.path.join(arguments.workdir, f"table_{split}.md"), "w") as file:
        file.write(text + "\n")
    print(f"written to {arguments.workdir}: table_{split}.md, results_{split}.json")


def is_finished(workdir: Workdir, config) -> bool:
    """Whether all four networks have been evaluated on the split, at their last step."""
    try:
        with open(workdir.evaluation) as file:
            rows = json.load(file)[config.eval.split]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False
    steps = {"teacher": config.teacher.steps} | dict.fromkeys([*assembly.BASELINES, "student"], config.student.steps)
    return all(name in rows and rows[name]["step"] == step for name, step in steps.items())


def interval(values: np.ndarray) -> float:
    """Half width of the 95 % interval of the mean (Student's t); NaN for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def table(rows: dict[str, list[dict]]) -> str:
    """A Markdown table: mIoU per network as mean and standard deviation, and its gain over the SAR-only student."""
    count = len(next(iter(rows.values())))
    reference = np.array([row["mean_iou"] for row in rows[REFERENCE]])
    lines = [
        f"| network | mIoU (mean ± standard deviation, {count} seeds) | macro F1 "
        "| gain in mIoU over SAR-only (95 % interval) |",
        "|---|---|---|---|",
    ]
    for name, results in rows.items():
        values = np.array([row["mean_iou"] for row in results])
        gain = values - reference
        difference = "" if name in (REFERENCE, "teacher") else f"{gain.mean():+.3f} ± {interval(gain):.3f}"
        spread = f"{values.mean():.3f} ± {values.std(ddof=1) if count > 1 else float('nan'):.3f}"
        macro_f1 = np.mean([row["macro_f1"] for row in results])
        lines.append(f"| {results[0]['title']} | {spread} | {macro_f1:.3f} | {difference} |")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("compare", __doc__)
    parser.add_argument("--workdir", required=True, help="one folder per seed is made in it")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--first_seed", type=int, default=0, help="seeds count up from here")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main, with_config=True)
