"""Measures how fast this machine trains, predicts, reads and prepares data, and against what it could reach.

  python -m tools.benchmark --what=teacher_step,sar_step,student_step,inference --batch=8 --size=128
  python -m tools.benchmark --what=student_step --peer=torch --batch=8 --size=128 --json=benchmark.json
  python -m tools.benchmark --what=sar_step --batch=1,2,4,8 --size=64,128 --plot=sweep.png
  python -m tools.benchmark --what=startup
  python -m tools.benchmark --what=data --config=configs/quickstart.py --config.data.crop=256 \\
      --config.data.scenes.size=256 --config.data.scenes.train=64
  python -m tools.benchmark --what=prepare --dataset=sen12ms --raw_dir=SEN12MS --limit=2000
  python -m tools.benchmark --what=scene --size=4096,20000 --config=configs/quickstart.py
  python -m tools.benchmark --what=scene --size=4096 --workdir=runs/quickstart --window=1024,512 --flips

teacher_step, sar_step, student_step: one training step (input, forward, backward, update) of the EO teacher, of a
student on SAR and labels alone, of the HFD student with its frozen teacher. inference: SAR in, class map out. Networks
and loss come from --config (configs/default.py without it), arrays are made up: no data set is needed. All of them, and
the peer, are timed in turn, in another order each round; the table shows median and quartiles, the share of the matrix
product's and the copy's speed that are measured in the same run, and memory as the compiler plans it.
--peer=torch times the same networks, loss and optimiser written in PyTorch (`pip install torch`), after checking that
both compute the same from the same weights.
startup: from the command to the first training step, with an empty and with a filled compilation cache.
data: random crops per second from the config's data set (data.workers readers, at least one), training steps on one
batch, and training on what is read, with the share of the time in which it waits for data.
prepare: tiles per second of a plain loop and of tools.prepare_data with 1, 2, ... --workers processes.
scene: tools.predict on a made-up scene of --size pixels: Mpixel/s, and the most memory that it holds beyond what a
scene of a single batch takes. With the --workdir of a run on simulated scenes (as the quickstart) its student is taken
instead of a random one, and the map is held against the truth: mIoU, error rates near windows' borders and elsewhere,
and the share of pixels whose class is that of the first row, for every --window, and with --flips.
"""

import argparse
import tempfile

from hfd_jax.core.errors import UserError
from tools import cli, datasets

STEPS = ("teacher_step", "sar_step", "student_step", "inference")
ALONE = ("startup", "data", "prepare", "scene")


def main(arguments: argparse.Namespace) -> None:
    what = arguments.what.split(",")
    for name in what:
        if name not in STEPS + ALONE:
            raise UserError(
                f"--what={name} is unknown; expected some of {', '.join(STEPS)}, or one of {', '.join(ALONE)}"
            )
    if set(what) & set(ALONE) and len(what) > 1:
        raise UserError(f"--what={arguments.what}: {', '.join(ALONE)} are measured alone")
    # Imported where they are needed: the processes that prepare data import this file too, and need none of it.
    if what == ["prepare"]:
        from tools.bench.data import preparing

        if not arguments.dataset or not arguments.raw_dir:
            raise UserError("--what=prepare needs --dataset and --raw_dir")
        print(preparing(arguments))
    elif what == ["data"]:
        from tools.bench.data import reading

        with tempfile.TemporaryDirectory() as workdir:
            print(reading(workdir))
    elif what == ["scene"]:
        from tools.bench.scene import predicting

        print(predicting(arguments))
    elif what == ["startup"]:
        from tools.bench.startup import first_steps

        print(first_steps())
    else:
        from tools.bench.run import measure

        measure(arguments, what)


def whole_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmark", __doc__)
    parser.add_argument("--what", required=True, help=f"some of {','.join(STEPS)}, or one of {', '.join(ALONE)}")
    steps = parser.add_argument_group("steps")
    steps.add_argument("--batch", type=whole_numbers, default=[8], help="pairs per step; several: a sweep")
    steps.add_argument("--size", type=whole_numbers, default=[128], help="edge of the images, pixels; several: a sweep")
    steps.add_argument("--sar_bands", type=int, default=4, help="bands of the SAR images")
    steps.add_argument("--eo_bands", type=int, default=3, help="bands of the EO images")
    steps.add_argument("--num_classes", type=int, default=5, help="classes of the labels")
    steps.add_argument("--dtype", help="float32 or bfloat16; default: config.dtype")
    steps.add_argument("--devices", type=int, help="so many of this process's devices; default: all")
    steps.add_argument("--seconds", type=float, default=20, help="to spend on each thing that is timed")
    steps.add_argument("--rounds", type=int, default=5, help="turns into which they are divided")
    steps.add_argument("--peer", choices=("torch",), help="also time the same work in PyTorch")
    steps.add_argument("--peer_compile", action="store_true", help="with torch.compile besides eager")
    steps.add_argument("--json", help="also write all figures to this file")
    steps.add_argument("--plot", help="also draw speed and memory against batch and size into this PNG")
    steps.add_argument("--trace", help="also write a profiler trace of a few steps to this folder")
    prepare = parser.add_argument_group("prepare")
    prepare.add_argument("--dataset", choices=datasets.NAMES, help="kind of the raw data set")
    prepare.add_argument("--raw_dir", help="its folder")
    prepare.add_argument("--limit", type=int, default=1000, help="tiles of each split")
    prepare.add_argument("--workers", type=int, default=2, help="most processes")
    datasets.add_options(parser)
    scene = parser.add_argument_group("scene")
    scene.add_argument("--workdir", help="of a run on simulated scenes; default: random weights, of --config")
    scene.add_argument("--window", type=whole_numbers, default=[1024], help="their edge, pixels; several: each")
    scene.add_argument("--overlap", type=int, default=256, help="of neighbouring windows, pixels")
    scene.add_argument("--flips", action="store_true", help="also average over flips, as tools.predict --flips")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main, with_config=True)
