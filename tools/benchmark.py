"""Measures the speed of training, inference, reading and preparing data, compared with the machine's peak.

  python -m tools.benchmark --what=teacher_step,sar_step,student_step,inference --batch=8 --size=128
  python -m tools.benchmark --what=student_step --peer=torch --batch=8 --size=128 --json=benchmark.json
  python -m tools.benchmark --what=sar_step --batch=1,2,4,8 --size=64,128 --plot=sweep.png
  python -m tools.benchmark --what=startup
  python -m tools.benchmark --what=data --config=configs/quickstart.py --config.data.crop=256 \\
      --config.data.scenes.size=256 --config.data.scenes.train=64
  python -m tools.benchmark --what=prepare --dataset=sen12ms --raw_dir=SEN12MS --limit=2000
  python -m tools.benchmark --what=scene --size=4096,20000 --config=configs/quickstart.py
  python -m tools.benchmark --what=scene --size=4096 --workdir=runs/quickstart --window=1024,512 --flips
  python -m tools.benchmark --what=plan --target=h100:4 --batch=128 --size=512 --dtype=bfloat16 --scaling=8,32
  python -m tools.benchmark --suite=accelerator --out=suite

teacher_step, sar_step, student_step: one training step (input, forward, backward, update) of the EO teacher, of a
student on SAR and labels only, and of the HFD student with its frozen teacher. inference: SAR images to class maps.
Networks and loss come from --config (default: configs/default.py); the arrays are random, so no data set is needed. All
steps and the peer are timed in turn, in a different order each round. The table shows median and quartiles, the speed
relative to a matrix product and a copy measured in the same run, and the memory planned by the compiler.
--peer=torch also times the same networks, loss and optimiser in PyTorch (`pip install torch`) and reports the largest
difference between the results of both with the same weights.
startup: the time from the command to the first training step, with an empty and with a filled compilation cache.
data: crops per second for reading the config's data set (with data.workers readers, at least one), for training on one
batch, and for training on the batches read, with the share of the time spent waiting for data.
prepare: tiles per second for a plain loop and for tools.prepare_data with 1, 2, ... --workers processes.
scene: tools.predict on a synthetic scene of --size pixels: Mpixel/s, and the peak memory beyond that for a scene of a
single batch. With the --workdir of a run on simulated scenes (such as the quickstart), uses its student instead of
random weights and compares the map with the truth: mIoU, error rates near window borders and elsewhere, and the share
of pixels that agree with the first row, for each --window, and with --flips.
plan: compiles the steps (--steps) for accelerators that need not be there (--target), from shapes alone: memory,
whether it fits, operations, bytes, a lower bound of the time, collectives, and what is likely slow or imprecise, by
module. It needs only the compiler: `pip install -e ".[plan-gpu]"` or `".[plan-tpu]"`. --scaling adds weak scaling.

--suite=accelerator measures one card in under eight minutes: numbers against the CPU, steps and inference beside
PyTorch, memory, a profiler trace, and a short training on simulated scenes. It needs JAX, Flax, Optax, SciPy and
ml_collections, and PyTorch for the comparison, but no library that reads data. Results are in suite.json and suite.md
in --out; the same command continues an interrupted suite. --tiny tries every part at sizes for two CPU cores.
"""

import argparse
import sys
import tempfile

from hfd_jax.core.errors import UserError
from tools import cli

STEPS = ("teacher_step", "sar_step", "student_step", "inference")
ALONE = ("startup", "data", "prepare", "scene", "plan")


def main(arguments: argparse.Namespace) -> None:
    if bool(arguments.what) == bool(arguments.suite):
        raise UserError("expected either --what or --suite")
    if arguments.suite:
        measure_card(arguments)
        return
    what = arguments.what.split(",")
    for name in what:
        if name not in STEPS + ALONE:
            raise UserError(
                f"--what={name} is unknown; expected one or more of {', '.join(STEPS)}, or one of {', '.join(ALONE)}"
            )
    if set(what) & set(ALONE) and len(what) > 1:
        raise UserError(f"--what={arguments.what}: {', '.join(ALONE)} cannot be combined with anything else")
    # Imported where needed, because the worker processes of the preparation import this file and need none of it.
    if what == ["prepare"]:
        from tools.bench.data import time_preparation

        if not arguments.dataset or not arguments.raw_dir:
            raise UserError("--what=prepare needs --dataset and --raw_dir")
        print(time_preparation(arguments))
    elif what == ["data"]:
        from tools.bench.data import time_reading

        with tempfile.TemporaryDirectory() as workdir:
            print(time_reading(workdir))
    elif what == ["scene"]:
        from tools.bench.scene import time_mapping

        print(time_mapping(arguments))
    elif what == ["plan"]:
        from tools.bench import plan

        plan.measure(arguments)
    elif what == ["startup"]:
        from tools.bench.startup import time_first_steps

        print(time_first_steps())
    else:
        from tools.bench.run import measure

        measure(arguments, what)


def measure_card(arguments: argparse.Namespace) -> None:
    from tools.bench.suite.run import PAGE, run
    from tools.bench.suite.settings import TINY, Settings

    if not arguments.out:
        raise UserError("--suite needs --out, the folder for its results")
    parts = run(TINY if arguments.tiny else Settings(), arguments.out)["parts"]
    failed = [name for name, part in parts.items() if part["state"] == "failed" or part.get("errors")]
    print(f"written to {arguments.out}/{PAGE}")
    if failed:
        raise UserError(f"failed, wholly or partly: {', '.join(failed)}; the same command runs failed parts again")


def whole_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def make_parser(with_data: bool = True) -> argparse.ArgumentParser:
    """The parser; `with_data` False leaves out the options of --what=prepare, which need libraries that read data."""
    parser = cli.parser("benchmark", __doc__)
    parser.add_argument("--what", help=f"one or more of {','.join(STEPS)}, or one of {', '.join(ALONE)}")
    suite = parser.add_argument_group("suite")
    suite.add_argument("--suite", choices=("accelerator",), help="measures one card as a whole")
    suite.add_argument("--out", help="folder for the suite's results")
    suite.add_argument("--tiny", action="store_true", help="tries the suite at sizes for two CPU cores")
    steps = parser.add_argument_group("steps")
    steps.add_argument("--batch", type=whole_numbers, default=[8], help="pairs per step; several values make a sweep")
    steps.add_argument(
        "--size",
        type=whole_numbers,
        default=[128],
        help="side length of the images, pixels; several values make a sweep",
    )
    steps.add_argument("--sar_bands", type=int, default=4, help="number of SAR bands")
    steps.add_argument("--eo_bands", type=int, default=3, help="number of EO bands")
    steps.add_argument("--num_classes", type=int, default=5, help="number of classes")
    steps.add_argument("--dtype", help="float32 or bfloat16; default: config.dtype")
    steps.add_argument("--devices", type=int, help="number of this process's devices to use; default: all")
    steps.add_argument("--seconds", type=float, default=20, help="time to spend on each step")
    steps.add_argument("--rounds", type=int, default=5, help="number of rounds that the time is divided into")
    steps.add_argument("--peer", choices=("torch",), help="also time the same steps in PyTorch")
    steps.add_argument(
        "--peer_compile", action="store_true", help="time the peer with torch.compile as well as eagerly"
    )
    steps.add_argument("--json", help="also write all numbers to this file")
    steps.add_argument("--plot", help="also plot speed and memory against batch and size into this PNG file")
    steps.add_argument("--trace", help="also write a profiler trace of a few steps to this folder")
    plan = parser.add_argument_group("plan")
    plan.add_argument("--target", help="chips to compile for, such as h100:1, h100:4, v5e:2x4")
    plan.add_argument("--steps", default=",".join(STEPS), help="steps to compile")
    plan.add_argument("--programs", help="also write the compiled programs as text to this existing folder")
    plan.add_argument("--scaling", type=whole_numbers, help="numbers of chips for the table of weak scaling")
    scene = parser.add_argument_group("scene")
    scene.add_argument("--workdir", help="workdir of a run on simulated scenes; default: random weights")
    scene.add_argument(
        "--window",
        type=whole_numbers,
        default=[1024],
        help="side length of the windows, pixels; several values make a sweep",
    )
    scene.add_argument("--overlap", type=int, default=256, help="overlap of neighbouring windows, pixels")
    scene.add_argument("--flips", action="store_true", help="also time averaging over flips, as tools.predict --flips")
    if with_data:
        add_preparation(parser)
    return parser


def add_preparation(parser: argparse.ArgumentParser) -> None:
    from tools import datasets

    prepare = parser.add_argument_group("prepare")
    prepare.add_argument("--dataset", choices=datasets.NAMES, help="kind of the raw data set")
    prepare.add_argument("--raw_dir", help="folder of the raw data set")
    prepare.add_argument("--limit", type=int, default=1000, help="number of tiles of each split")
    prepare.add_argument("--workers", type=int, default=2, help="maximum number of processes")
    datasets.add_options(parser)


if __name__ == "__main__":
    suite = any(word.startswith("--suite") for word in sys.argv[1:])
    cli.launch(make_parser(with_data=not suite), main, with_config=True)
