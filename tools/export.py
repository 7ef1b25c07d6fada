"""Exports the student of a run: as one file to share, or as a program that runs without this project.

  python -m tools.export --workdir=runs/quickstart --output=student --format=model --license=Apache-2.0
  python -m tools.export --workdir=runs/quickstart --output=student
  python -m tools.export --workdir=runs/spacenet6 --output=student --size=512,1024 --checkpoint=best
  python -m tools.export --workdir=runs/quickstart --output=student --format=savedmodel

--format=model writes OUTPUT/student.safetensors: parameters as arrays, and as JSON everything else that is needed
(architecture, bands, unit, statistics, classes, config, provenance, digests); no code. hfd_jax.load, tools.predict and
tools.evaluate take the file in place of a workdir, for images of any size. Beside it lies OUTPUT/README.md, a model
card that the run fills in; --license names the licence of the weights. Complete the card before you publish the model.

--format=stablehlo and savedmodel write a program that maps (sar [batch, height, width, bands] float32 in the unit of
the data set, valid [batch, height, width] bool) to logits [batch, height, width, classes] float32. Filter,
normalisation and parameters are inside; adapters and the teacher are not. The batch may have any size; height and width
are fixed, with one artifact per --size.

OUTPUT/model.json lists bands, unit, statistics, classes, colours, origin and digests, OUTPUT/README.txt shows how to
call it. A StableHLO artifact needs only JAX and flatbuffers (pip install jax flatbuffers):

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
    options = export.Options(
        arguments.size or (), arguments.format, arguments.platforms, arguments.overwrite, arguments.license or ""
    )
    workdir = Workdir(arguments.workdir)
    network = export.open_sar_network(workdir, arguments.network, arguments.checkpoint, arguments.dtype)
    if options.format == "model":
        evaluation = export.evaluation_of(workdir, network)
        description = export.write_model(network, arguments.output, options.overwrite, evaluation, options.license)
    else:
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
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--output", required=True, help="folder to create")
    parser.add_argument("--network", default="student", help="a SAR network, named as in WORKDIR/checkpoints")
    parser.add_argument("--checkpoint", choices=("latest", "best"), help="default: the one that the run evaluated")
    parser.add_argument(
        "--size",
        type=sizes,
        help="EDGE or HEIGHTxWIDTH in pixels, multiples of 32, separated by commas, one artifact each; default: the "
        "training crop; not for --format=model",
    )
    parser.add_argument("--format", default="stablehlo", choices=export.FORMATS, help="savedmodel needs TensorFlow")
    parser.add_argument(
        "--platforms",
        type=words,
        default="cpu,cuda,tpu",
        help=f"platforms of each program, separated by commas: {', '.join(export.PLATFORMS)}",
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="dtype of the computation; default: as in training")
    parser.add_argument(
        "--license", metavar="SPDX", help="licence of the weights, for the model card; default: not stated"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
