"""Writes the student of a run, alone, as an artifact that runs without this project.

  python -m tools.export --workdir=runs/quickstart --output=student
  python -m tools.export --workdir=runs/spacenet6 --output=student --size=512,1024 --checkpoint=best
  python -m tools.export --workdir=runs/quickstart --output=student --format=savedmodel

The artifact maps (sar [batch, height, width, bands] float32 in the unit that the data set stores, valid [batch, height,
width] bool) to logits [batch, height, width, classes] float32. Filter, normalisation and parameters are inside; there
is no adapter and no teacher. The batch may have any size; height and width are fixed, one artifact for each --size.

OUTPUT/model.json tells bands, unit, statistics, classes, colours, origin and digests, OUTPUT/README.txt how to call it.
A StableHLO artifact needs JAX alone:

  import jax, json, pathlib, numpy as np
  model = json.loads(pathlib.Path('model.json').read_text())
  artifact = model['artifacts'][0]
  network = jax.jit(jax.export.deserialize(pathlib.Path(artifact['file']).read_bytes()).call)
  sar = np.zeros((1, artifact['height'], artifact['width'], len(model['input']['sar']['bands'])), np.float32)
  logits = network(sar, np.isfinite(sar).all(-1))
"""

import argparse
import os

from hfd_jax.core.workdir import Workdir
from hfd_jax.inference import export
from hfd_jax.models.registry import DTYPES
from tools import cli


def main(arguments: argparse.Namespace) -> None:
    options = export.Options(arguments.size or (), arguments.format, arguments.platforms, arguments.overwrite)
    network = export.open_network(Workdir(arguments.workdir), arguments.network, arguments.checkpoint, arguments.dtype)
    description = export.write(network, arguments.output, options)
    print(f"{description['name']}, step {description['step']}, {description['parameters']['count']} parameters")
    print(f"written to {arguments.output}: {', '.join(sorted(os.listdir(arguments.output)))}")


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """ "256,512x1024" -> ((256, 256), (512, 1024))."""
    edges = [part.split("x") for part in text.split(",")]
    return tuple(
        (int(height), int(width)) for height, width in (pair * 2 if len(pair) == 1 else pair for pair in edges)
    )


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("export", __doc__)
    parser.add_argument("--workdir", required=True, help="of the run, as main.py was given it")
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument("--network", default="student", help="that reads SAR, as its folder in WORKDIR/checkpoints")
    parser.add_argument(
        "--checkpoint", choices=("latest", "best"), help="default: as the run evaluated, config.eval.checkpoint"
    )
    parser.add_argument(
        "--size",
        type=sizes,
        help="EDGE or HEIGHTxWIDTH in pixels, multiples of 32; several, with commas: an artifact each; default: the "
        "crop that the network was trained on",
    )
    parser.add_argument("--format", default="stablehlo", choices=export.FORMATS, help="savedmodel needs TensorFlow")
    parser.add_argument(
        "--platforms",
        type=words,
        default="cpu,cuda,tpu",
        help=f"that each artifact runs on, with commas, out of {', '.join(export.PLATFORMS)}",
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="to compute in; default: as in training")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
