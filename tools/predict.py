"""Maps georeferenced scenes of any size with a trained network.

  python -m tools.predict --workdir=runs/my_data --input=scene.tif --output=maps
  python -m tools.predict --workdir=runs/my_data --input=scenes --output=maps --probabilities --confidence
  python -m tools.predict --workdir=runs/my_data --input='*_sigma0.tif' --output=maps --sar_unit=linear --bands=2,1
  python -m tools.predict --workdir=runs/my_data --input=scene.tif --output=maps --polygons=water --min_area=400
  python -m tools.predict --workdir=runs/my_data --input=scenes.txt --output=maps --network=sar_only --flips
  python -m tools.predict --model=student.safetensors --input=scene.tif --output=maps

The network comes from the workdir of a run or from a model file (tools.export --format=model).

Writes OUTPUT/NAME.tif for every scene NAME.tif: class indices with the scene's CRS and transform, 255 where the scene
has no data, as a cloud-optimised GeoTIFF. Names and colours of the classes are in the file and, for QGIS, in
NAME.tif.aux.xml. --probabilities adds NAME_probabilities.tif (one band per class), --confidence adds
NAME_confidence.tif (probability of the predicted class);
0 to 254 stand for 0 to 1, 255 for no data. --polygons=CLASS adds NAME_CLASS.gpkg: connected components of one class
with area and mean confidence (tools.polygonize creates them from an existing map).

The scene is read in overlapping windows whose logits are blended, so memory does not grow with the scene, and windows
leave no seams. A pixel's class does not depend on the window if the overlap covers the network's receptive field. Maps
of networks that pool over the whole window (model.context, PSPNet, ...) depend on the window; the tool then says so.

Bands, units and values are compared with the training data before anything is computed. A SAR network needs SAR scenes,
the teacher optical ones (--network=teacher). --rotate is for scenes imaged from the side opposite to the training tiles
(SpaceNet 6: the south-looking strips).

A map gets its name once it is complete. After an interruption, the same command continues with the next scene; it keeps
finished maps if checkpoint, scene and settings are unchanged. Several processes (--distributed) share the scenes.
"""

import argparse
from collections.abc import Sequence

import jax
import rasterio

from hfd_jax.core.errors import ConfigError, nearest
from hfd_jax.core.logs import say
from hfd_jax.core.parallel import KINDS, Jit, Pmap, enable_compilation_cache, join_processes, make_parallel
from hfd_jax.core.workdir import Workdir
from hfd_jax.data.facts import SAR_UNITS
from hfd_jax.inference.mapping.listing import find_scenes, targets
from hfd_jax.inference.mapping.predict import BATCH, OVERLAP, WINDOW, Options, Predictor
from hfd_jax.inference.mapping.reader import Interpretation
from hfd_jax.inference.mapping.run import Polygons, predict_scenes
from hfd_jax.inference.mapping.writer import CLASSES, CONFIDENCE, PROBABILITIES
from hfd_jax.inference.restore import Network, find_network, load_model
from tools import cli

CACHE_MB = 256  # GDAL's cache; its default is a share of the machine's memory


def main(arguments: argparse.Namespace) -> None:
    join_processes(arguments.distributed)
    enable_compilation_cache()
    products = [CLASSES]
    products += [PROBABILITIES] if arguments.probabilities else []
    products += [CONFIDENCE] if arguments.confidence or arguments.polygons else []
    scenes = find_scenes(arguments.input)
    where = targets(scenes, arguments.output, products)
    parallel = make_parallel(arguments.parallel, jax.local_devices())
    network = find(arguments, parallel)
    predictor = Predictor(network, parallel, make_options(arguments))
    polygons = make_polygons(arguments, network.record["facts"]["class_names"])
    say(f"network: {network.record['title']}, step {network.record['step']}")
    say(f"devices: {parallel.local_devices} {jax.default_backend()}, {arguments.parallel}")
    if network.model.sees_all:
        say("note: the network pools over whole windows, so its maps depend on --window")
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        predict_scenes(predictor, scenes, where, arguments.overwrite, polygons)


def find(arguments: argparse.Namespace, parallel: Jit | Pmap) -> Network:
    """Restores the network of the workdir or of the model file."""
    if arguments.model:
        return load_model(arguments.model, arguments.network, arguments.checkpoint, parallel)
    return find_network(Workdir(arguments.workdir), arguments.network or "student", arguments.checkpoint, parallel)


def make_options(arguments: argparse.Namespace) -> Options:
    bands = tuple(part.strip() for part in arguments.bands.split(",")) if arguments.bands else ()
    return Options(
        window=arguments.window or 0,
        overlap=arguments.overlap,
        batch_size=arguments.batch_size,
        flips=arguments.flips,
        rotate=arguments.rotate,
        described=Interpretation(arguments.sar_unit or "", arguments.nodata, bands),
    )


def make_polygons(arguments: argparse.Namespace, class_names: Sequence[str]) -> Polygons | None:
    """Raises ConfigError if there is no such class."""
    if not arguments.polygons:
        return None
    if arguments.polygons not in class_names:
        raise ConfigError(f"--polygons={arguments.polygons}: no such class; {nearest(arguments.polygons, class_names)}")
    return Polygons(arguments.polygons, arguments.polygon_format, arguments.min_area, arguments.simplify)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("predict", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="folder of the run")
    source.add_argument("--model", metavar="FILE", help="a model file, or its folder, instead of a workdir")
    parser.add_argument("--input", required=True, help="a raster, a folder of rasters, a pattern, or a list NAME.txt")
    parser.add_argument("--output", required=True, help="folder of the maps")
    parser.add_argument("--network", help="teacher, student or a baseline; default: student, or that of the file")
    parser.add_argument("--checkpoint", choices=("latest", "best"), help="default: the one that the run evaluated")
    maps = parser.add_argument_group("maps")
    maps.add_argument("--probabilities", action="store_true", help="also write the probability of every class")
    maps.add_argument("--confidence", action="store_true", help="also write the probability of the predicted class")
    maps.add_argument("--overwrite", action="store_true", help="replace existing maps, whatever their settings")
    shapes = parser.add_argument_group("polygons")
    shapes.add_argument("--polygons", metavar="CLASS", help="also write polygons of this class; implies --confidence")
    shapes.add_argument("--polygon_format", choices=("gpkg", "geojson"), default="gpkg", help="format of the polygons")
    shapes.add_argument("--min_area", type=float, default=0.0, help="drop smaller polygons, square metres")
    shapes.add_argument("--simplify", type=float, default=1.0, help="tolerance in pixels; 0 keeps the pixel edges")
    scenes = parser.add_argument_group("scenes")
    scenes.add_argument("--sar_unit", choices=SAR_UNITS, help="unit of the scenes; default: that of the training data")
    scenes.add_argument("--nodata", type=float, help="value of pixels without data; default: each scene's nodata tag")
    scenes.add_argument("--bands", help="numbers (from 1) or names of the bands, such as VV,VH; default: by name")
    work = parser.add_argument_group("computation")
    default_window = f"{WINDOW}, or the training crop if that is larger"
    work.add_argument("--window", type=int, help=f"side length of the windows, pixels; default: {default_window}")
    work.add_argument("--overlap", type=int, default=OVERLAP, help="overlap of neighbouring windows, pixels")
    work.add_argument("--batch_size", type=int, default=BATCH, help="windows per step over all devices")
    work.add_argument("--flips", action="store_true", help="average over the flips that preserve the look direction")
    work.add_argument("--rotate", action="store_true", help="turn the scenes by 180 degrees for the network")
    work.add_argument("--parallel", choices=KINDS, default="jit", help="how several devices are used")
    work.add_argument("--distributed", action="store_true", help="this is one of several processes, as in training")
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
