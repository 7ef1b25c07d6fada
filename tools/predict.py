"""Makes maps of georeferenced scenes of any size with a trained network.

  python -m tools.predict --workdir=runs/my_data --input=scene.tif --output=maps
  python -m tools.predict --workdir=runs/my_data --input=scenes --output=maps --probabilities --confidence
  python -m tools.predict --workdir=runs/my_data --input='*_sigma0.tif' --output=maps --sar_unit=linear --bands=2,1
  python -m tools.predict --workdir=runs/my_data --input=scenes.txt --output=maps --network=sar_only --flips

Writes OUTPUT/NAME.tif for every scene NAME.tif: class indices (the names and colours are in the file) with the scene's
CRS and transform, 255 where the scene has no data, as a cloud-optimised GeoTIFF. --probabilities adds
NAME_probabilities.tif (one band per class), --confidence NAME_confidence.tif (probability of the class that won);
0 to 254 stand for 0 to 1, 255 for no data.

The scene is read in overlapping windows whose logits are blended, so memory does not grow with the scene, and windows
leave no seams. A pixel's class does not depend on the window as long as the overlap holds what the network looks at
around it; networks with config.model.context look at the whole window, and their maps do depend on it.

Bands, units and values are held against what the network was trained on before anything is computed. A SAR network
needs SAR scenes, the teacher optical ones (--network=teacher). --rotate is for scenes imaged from the side opposite to
the training tiles (SpaceNet 6: the south-looking strips).

A map has its name when it is complete. The same command after an interruption goes on with the next scene, and leaves
finished maps alone if checkpoint, scene and settings are the same. Several processes (--distributed) share the scenes.
"""

import argparse
import os

import jax
import rasterio

from hfd_jax import assembly
from hfd_jax.data.facts import SAR_UNITS
from hfd_jax.errors import WorkdirError
from hfd_jax.evaluate import Network, load_network
from hfd_jax.parallel import KINDS, Jit, Pmap, enable_compilation_cache, join_processes, make_parallel
from hfd_jax.reporting import say
from hfd_jax.scenes.listing import find_scenes, targets
from hfd_jax.scenes.predict import BATCH, OVERLAP, WINDOW, Options, Predictor
from hfd_jax.scenes.reader import Interpretation
from hfd_jax.scenes.run import predict_scenes
from hfd_jax.scenes.writer import CLASSES, CONFIDENCE, PROBABILITIES
from hfd_jax.workdir import Workdir, read_json
from tools import cli

CACHE_MB = 256  # of GDAL, whose default is a share of the machine's memory


def main(arguments: argparse.Namespace) -> None:
    join_processes(arguments.distributed)
    enable_compilation_cache()
    products = [CLASSES]
    products += [PROBABILITIES] if arguments.probabilities else []
    products += [CONFIDENCE] if arguments.confidence else []
    scenes = find_scenes(arguments.input)
    where = targets(scenes, arguments.output, products)
    parallel = make_parallel(arguments.parallel, jax.local_devices())
    network = find_network(Workdir(arguments.workdir), arguments.network, arguments.checkpoint, parallel)
    predictor = Predictor(network, parallel, make_options(arguments))
    say(f"network: {network.record['title']}, step {network.record['step']}")
    say(f"devices: {parallel.local_devices} {jax.default_backend()}, {arguments.parallel}")
    if network.model.context:
        say("note: with config.model.context the network looks at whole windows: its maps depend on --window")
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        predict_scenes(predictor, scenes, where, arguments.overwrite)


def find_network(workdir: Workdir, name: str, checkpoint: str | None, parallel: Jit | Pmap) -> Network:
    """A network of a run; WorkdirError, naming those that are there, where it has no checkpoint."""
    config = read_json(workdir.config)
    folder = (config["teacher"]["checkpoint"] if name == "teacher" else "") or workdir.checkpoints(name)
    if not os.path.isdir(folder):
        there = [n for n in ("teacher", *assembly.BASELINES, "student") if os.path.isdir(workdir.checkpoints(n))]
        raise WorkdirError(f"{folder}: no checkpoint of {name!r}; in {workdir.root} are: {', '.join(there) or 'none'}")
    return load_network(folder, checkpoint or config["eval"]["checkpoint"], parallel)


def make_options(arguments: argparse.Namespace) -> Options:
    bands = tuple(part.strip() for part in arguments.bands.split(",")) if arguments.bands else ()
    return Options(
        window=arguments.window or 0,
        overlap=arguments.overlap,
        batch_size=arguments.batch_size,
        flips=arguments.flips,
        rotate=arguments.rotate,
        said=Interpretation(arguments.sar_unit or "", arguments.nodata, bands),
    )


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("predict", __doc__)
    parser.add_argument("--workdir", required=True, help="of the run, as main.py was given it")
    parser.add_argument("--input", required=True, help="a raster, a folder of them, a pattern, or a list NAME.txt")
    parser.add_argument("--output", required=True, help="folder of the maps")
    parser.add_argument("--network", default="student", help="teacher, student, or a baseline")
    parser.add_argument(
        "--checkpoint", choices=("latest", "best"), help="default: as the run did, config.eval.checkpoint"
    )
    maps = parser.add_argument_group("maps")
    maps.add_argument("--probabilities", action="store_true", help="also write the probability of every class")
    maps.add_argument("--confidence", action="store_true", help="also write the probability of the winning class")
    maps.add_argument("--overwrite", action="store_true", help="make all maps anew, also those made otherwise")
    scenes = parser.add_argument_group("scenes")
    scenes.add_argument("--sar_unit", choices=SAR_UNITS, help="of the scenes; default: as the network was trained")
    scenes.add_argument("--nodata", type=float, help="value without data in all bands; default: each scene's own tag")
    scenes.add_argument("--bands", help="numbers (from 1) or names of the bands to take, as VV,VH; default: by name")
    work = parser.add_argument_group("computation")
    default_window = f"{WINDOW}, or the training crop if that is larger"
    work.add_argument("--window", type=int, help=f"edge of the windows, pixels; default: {default_window}")
    work.add_argument("--overlap", type=int, default=OVERLAP, help="of neighbouring windows, pixels")
    work.add_argument("--batch_size", type=int, default=BATCH, help="windows at a time, all devices together")
    work.add_argument("--flips", action="store_true", help="average over the flips that the look direction allows")
    work.add_argument("--rotate", action="store_true", help="turn the scenes by 180 degrees for the network")
    work.add_argument("--parallel", choices=KINDS, default="jit", help="how several devices are used")
    work.add_argument("--distributed", action="store_true", help="this is one of several processes, as in training")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
