"""Benchmarks the mapping of large synthetic scenes: speed, memory and errors near the borders of windows."""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import resource
import tempfile
import types
from typing import Any

import jax
import numpy as np
import rasterio
from ml_collections import ConfigDict
from rasterio.transform import from_origin
from rasterio.windows import Window

from configs import default
from hfd_jax.core import logs
from hfd_jax.core.errors import UserError
from hfd_jax.core.parallel import Jit, enable_compilation_cache
from hfd_jax.core.workdir import Workdir, read_json
from hfd_jax.data.simulator import simulate
from hfd_jax.evaluation.metrics import scores
from hfd_jax.inference.mapping.predict import Options, Predictor
from hfd_jax.inference.mapping.windows import place
from hfd_jax.inference.mapping.writer import CLASSES, Target
from hfd_jax.inference.restore import Network
from hfd_jax.train import build, config_flags, reading
from hfd_jax.train.networks import student_spec
from tools.bench import cases
from tools.predict import CACHE_MB, find_network

# Scenes are tiled with simulated patches, whose edges rarely coincide with those of windows.
PATCH = 500  # edge of a patch, pixels
PATCHES = 12  # number of different patches
FIRST = 1_000_000  # index of the first patch, far from any training tile
NEAR = 8  # distance within which a pixel counts as near a window border, pixels
STRIPE = 512  # rows compared at a time


@dataclasses.dataclass(frozen=True)
class Case:
    """A scene and how to map it.

    Attributes:
      folder: folder of the scene and its map.
      options: window, overlap and flips.
      workdir: workdir of the student; None for a student with random weights.
      config: config of the student and the simulated scenes.
    """

    folder: str
    options: Options
    workdir: str | None
    config: ConfigDict

    @property
    def scene(self) -> str:
        return os.path.join(self.folder, "scene.tif")

    @property
    def map(self) -> str:
        return os.path.join(self.folder, f"map_{self.options.window}_{self.options.overlap}_{self.options.flips}.tif")


def time_mapping(arguments: argparse.Namespace) -> str:
    """Returns a table with one row per size, window and use of flips."""
    config = default.get_config() if config_flags.given() is None else config_flags.config(default.get_config())
    if arguments.workdir:
        config = ConfigDict(read_json(Workdir(arguments.workdir).config))
        if config.data.name != "scenes":
            raise UserError(f"--workdir={arguments.workdir}: trained on {config.data.name}; expected simulated scenes")
    header = ["size", "window", "flips", "Mpixel/s", "MiB beyond one batch"]
    header += ["mIoU", f"errors within {NEAR} px of window borders", "errors elsewhere", "agreement with first row"]
    lines = [header if arguments.workdir else header[:5]]
    for size in arguments.size:
        with tempfile.TemporaryDirectory() as folder:
            write_scene(folder, size, config)
            options = [
                Options(window=window, overlap=arguments.overlap, flips=flips)
                for flips, window in itertools.product((False, True)[: 1 + arguments.flips], arguments.window)
            ]
            rows = [Case(folder, chosen, arguments.workdir, config) for chosen in options]
            for case in rows:
                print(f"{size} x {size}, windows of {case.options.window} ...", flush=True)
                line = [str(size), str(case.options.window), "yes" if case.options.flips else "no", *measure(case)]
                lines.append(line + (evaluate(case, rows[0].map) if arguments.workdir else []))
    return logs.columns(lines)


def measure(case: Case) -> list[str]:
    """Measures speed and memory in a separate process, since memory is the peak over the process's lifetime."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as executor:
        size, seconds, memory = executor.submit(run, case).result()
    return [f"{size / 1e6 / seconds:.2f}", f"{memory / 2**20:.0f}"]


def run(case: Case) -> tuple[int, float, int]:
    """Returns (pixels, seconds, bytes): the bytes are the peak beyond that for a corner of the scene.

    The corner accounts for the network, its compilation and the libraries.
    """
    enable_compilation_cache()
    parallel = Jit(jax.local_devices())
    workdir = Workdir(case.workdir) if case.workdir else None
    network = find_network(workdir, "student", None, parallel) if workdir else random_network(case.config, parallel)
    predictor = Predictor(network, parallel, case.options)
    held = []
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        corner = write_corner(case)
        for path, output in ((corner, os.path.join(case.folder, "map_of_corner.tif")), (case.scene, case.map)):
            with predictor.open(path) as scene:
                seconds = predictor(scene, Target(output.removesuffix(".tif"), (CLASSES,)), os.path.basename(path))
                size = scene.shape[0] * scene.shape[1]
            held.append(peak_memory())
    return size, seconds, held[1] - held[0]


def peak_memory() -> int:
    """Returns this process's peak memory in bytes."""
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:  # not Linux, where getrusage would start from the parent's peak
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def random_network(config: ConfigDict, parallel: Jit) -> Network:
    """Returns the config's student with random weights."""
    facts = reading.scene_source(config.data.scenes).facts
    shapes = cases.Shapes(1, 64, len(facts.sar_bands), len(facts.eo_bands), len(facts.class_names))
    run, inputs = student_spec(config), cases.make_inputs(config, shapes)
    model = build.make_model(config, run, shapes.classes)
    variables = parallel.init(model.init, jax.random.key(0), np.zeros((1, 64, 64, shapes.sar_bands), np.float32))
    about = types.SimpleNamespace(facts=facts, sizes={})
    record = build.make_record(config, run, about, inputs, {})
    return Network(record | {"step": 0, "arrays": {}}, model, inputs, variables)


def write_corner(case: Case) -> str:
    """Writes the corner of the scene that contains 2 x 2 windows (one batch) and returns its path."""
    edge, path = 2 * case.options.window - case.options.overlap, os.path.join(case.folder, "corner.tif")
    with rasterio.open(case.scene) as scene:
        edge = min(edge, scene.height)
        corner = scene.read(window=Window(0, 0, edge, edge))
        with rasterio.open(path, "w", **{**scene.profile, "height": edge, "width": edge}) as file:
            file.write(corner)
    return path


def write_scene(folder: str, size: int, config: ConfigDict) -> None:
    """Writes scene.tif and truth.tif of size x size pixels."""
    options = reading.scene_source(config.data.scenes).options.with_true_labels()
    options = dataclasses.replace(options, size=PATCH)
    patches = [simulate(FIRST + index, options) for index in range(PATCHES)]
    for name, bands in (("scene", 2), ("truth", 1)):
        layout = {"tiled": True, "blockxsize": STRIPE, "blockysize": STRIPE, "bigtiff": "IF_SAFER"}
        grid: dict[str, Any] = {"crs": "EPSG:32631", "transform": from_origin(592000, 5750000, 1, 1)}
        kind = {"count": bands, "dtype": "uint8" if name == "truth" else "float32"}
        path = os.path.join(folder, f"{name}.tif")
        with rasterio.open(path, "w", driver="GTiff", height=size, width=size, **kind, **layout, **grid) as file:
            for row, col in itertools.product(range(0, size, PATCH), repeat=2):
                patch = patches[(7 * (row // PATCH) + col // PATCH) % PATCHES]
                image = patch.label[None] if name == "truth" else np.moveaxis(patch.sar, -1, 0)
                image = image[:, : size - row, : size - col]
                file.write(image, window=Window(col, row, *image.shape[:0:-1]))


def evaluate(case: Case, first: str) -> list[str]:
    """Returns mIoU, error rates near window borders and elsewhere, and the share of pixels that agree with `first`."""
    with contextlib.ExitStack() as opened:
        paths = (case.map, os.path.join(case.folder, "truth.tif"), first)
        found, truth, other = (opened.enter_context(rasterio.open(path)) for path in paths)
        size, tags = found.height, found.tags()
        names = tuple(tags[f"CLASS_{k}"] for k in range(sum(tag.startswith("CLASS_") for tag in tags)))
        near, matrix = near_borders(size, case.options), np.zeros((len(names),) * 2, np.int64)
        wrong, count, equal = np.zeros(2), np.zeros(2), 0
        for row in range(0, size, STRIPE):
            window = Window(0, row, size, min(STRIPE, size - row))
            classes, true, reference = (file.read(1, window=window).astype(int) for file in (found, truth, other))
            matrix += np.bincount((true * len(names) + classes).ravel(), minlength=matrix.size).reshape(matrix.shape)
            near_border = near[row : row + STRIPE, None] | near
            for k, where in enumerate((near_border, ~near_border)):
                wrong[k] += np.sum((classes != true) & where)
                count[k] += where.sum()
            equal += int(np.sum(classes == reference))
    rates = [f"{rate:.4f}" for rate in wrong / count]
    return [f"{scores(matrix, names, 0).mean_iou:.4f}", *rates, f"{equal / size**2:.4%}"]


def near_borders(size: int, options: Options) -> np.ndarray:
    """[size] bool: positions within NEAR pixels of a window's start or end inside the scene."""
    axis = place(size, options.window, options.overlap)
    borders = np.array([*axis.starts[1:], *(start + axis.size for start in axis.starts[:-1])])
    return (np.abs(np.arange(size)[:, None] + 0.5 - borders) < NEAR).any(1)
