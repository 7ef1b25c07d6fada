"""Writes the maps of a scene as cloud-optimised GeoTIFFs, under temporary names until they are complete."""

import contextlib
import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError  # rasterio.shutil does not wrap it
from rasterio.enums import ColorInterp

from hfd_jax.core.errors import WorkdirError
from hfd_jax.core.workdir import Workdir, differences, sole_run
from hfd_jax.data.facts import Facts
from hfd_jax.inference.mapping.legend import ENDING, legend
from hfd_jax.inference.mapping.windows import BLOCK
from hfd_jax.models.base import STRIDE

NO_DATA = 255
HIGHEST = 254  # stored for a probability of 1
SETTINGS = "HFD_JAX_SETTINGS"  # the tag that records how a map was made
ROWS = 2 * STRIDE  # rows converted at a time, to keep temporary arrays small


@dataclasses.dataclass(frozen=True)
class Product:
    """A kind of map.

    Attributes:
      suffix: suffix of the file name.
      overviews: resampling method of the overviews.
      predictor: predictor of the compression.
    """

    suffix: str
    overviews: str
    predictor: str


CLASSES = Product("", "NEAREST", "NO")
CONFIDENCE = Product("_confidence", "AVERAGE", "YES")
PROBABILITIES = Product("_probabilities", "AVERAGE", "YES")


@dataclasses.dataclass(frozen=True)
class Target:
    """The maps of one scene.

    Attributes:
      stem: path without extension.
      products: maps to write, the class map first.
    """

    stem: str
    products: tuple[Product, ...]

    @property
    def temporary(self) -> str:
        """The folder of incomplete maps."""
        return f"{self.stem}.partial"

    def path(self, product: Product) -> str:
        return f"{self.stem}{product.suffix}.tif"

    def is_complete(self, settings: dict[str, Any]) -> bool:
        """Whether all products exist and were made with these settings.

        Args:
          settings: JSON-ready; everything that determines the maps.

        Raises:
          WorkdirError: a file with that name was made with other settings; lists the differences.
        """
        complete = True
        for path in map(self.path, self.products):
            if not os.path.exists(path):
                complete = False
                continue
            found = stored_settings(path)
            if found is None:
                raise WorkdirError(f"{path}: exists and is not a map of tools.predict; --overwrite replaces it")
            lines = [line for _, line in differences(found, settings)]
            if lines:
                raise WorkdirError(
                    f"{path}: was made with other settings; choose another --output, or --overwrite. Differing: "
                    + "; ".join(lines[:5])
                )
        return complete


def stored_settings(path: str) -> dict[str, Any] | None:
    """Returns the settings that a map was made with; None if the file does not record them."""
    try:
        with _quiet(), rasterio.open(path) as raster:
            return json.loads(raster.tags()[SETTINGS])
    except (rasterio.errors.RasterioIOError, KeyError, json.JSONDecodeError):
        return None


@contextlib.contextmanager
def maps(
    target: Target, shape: tuple[int, int], georeference: dict[str, Any], facts: Facts, tags: dict[str, str]
) -> Iterator["Maps"]:
    """Opens maps; completes them when the block ends and removes them if it raises.

    Args:
      target: names and products.
      shape: rows and columns.
      georeference: see `Scene`.
      facts: classes and colours.
      tags: tags for every file.

    Raises:
      WorkdirError: another process is writing the same maps, or they cannot be written.
    """
    with sole_run(Workdir(target.temporary)), contextlib.ExitStack() as cleaning:
        cleaning.callback(shutil.rmtree, target.temporary, ignore_errors=True)
        opened = Maps(target, shape, georeference, facts, tags)
        cleaning.callback(opened.close)
        yield opened
        opened.finish()


class Maps:
    """Converts logits to maps and writes them; made by `maps`."""

    def __init__(
        self,
        target: Target,
        shape: tuple[int, int],
        georeference: dict[str, Any],
        facts: Facts,
        tags: dict[str, str],
    ):
        self._target, self._files, self._facts = target, {}, facts
        self._sums = dict.fromkeys(target.products, 0)  # of all bytes written
        for product in target.products:
            with _writing(target.path(product)), _quiet():
                self._files[product] = self._create(product, shape, georeference, facts)
                self._files[product].update_tags(**tags)

    def write(self, row: int, col: int, logits: np.ndarray, valid: np.ndarray) -> None:
        """Writes a part of the scene.

        Args:
          row, col: first pixel of the part; multiples of the network's stride and of the block width.
          logits: [classes, H, W] float32.
          valid: [H, W] bool; the maps have no data elsewhere, nor where a logit is not finite.
        """
        for start in range(0, logits.shape[1], ROWS):
            part, there = logits[:, start : start + ROWS], valid[start : start + ROWS]
            there = there & np.isfinite(part.sum(0))
            window = rasterio.windows.Window(col, row + start, *part.shape[:0:-1])
            for product, bands in products_of(part, there, self._target.products).items():
                with _writing(self._target.path(product)):
                    self._files[product].write(bands, window=window)
                self._sums[product] += int(bands.sum(dtype=np.int64))

    def finish(self) -> None:
        """Copies the maps to cloud-optimised files and renames them, the class map last.

        On a full disk GDAL may leave a damaged file without an error, so each file is read back before it is renamed.
        """
        self.close()
        complete = {}
        for product in self._target.products:
            path = os.path.join(self._target.temporary, f"complete{product.suffix}.tif")
            with _writing(self._target.path(product)), _quiet():
                rasterio.shutil.copy(self._growing(product), path, driver="COG", **_cog_options(product))
                if not reads_back(path, self._sums[product]):
                    raise OSError("what was written does not read back; is the disk full?")
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            complete[product] = path
        self._write_legend()
        for product in reversed(self._target.products):
            os.replace(complete[product], self._target.path(product))

    def _write_legend(self) -> None:
        """Writes names and colours of the classes beside the class map."""
        path = self._target.path(CLASSES) + ENDING
        with _writing(path):
            temporary = os.path.join(self._target.temporary, f"legend{ENDING}")
            with open(temporary, "wb") as file:
                file.write(legend(self._facts))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)

    def close(self) -> None:
        for product, file in self._files.items():
            with _writing(self._target.path(product)):
                file.close()

    def _growing(self, product: Product) -> str:
        return os.path.join(self._target.temporary, f"growing{product.suffix}.tif")

    def _create(self, product: Product, shape: tuple[int, int], georeference: dict[str, Any], facts: Facts):
        count = len(facts.class_names) if product == PROBABILITIES else 1
        # Blocks are as high as the runs of rows written at once, so each block is compressed once.
        layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": STRIDE, "compress": "DEFLATE", "zlevel": 1}
        file = rasterio.open(
            self._growing(product),
            "w",
            driver="GTiff",
            height=shape[0],
            width=shape[1],
            count=count,
            dtype="uint8",
            nodata=NO_DATA,
            interleave="pixel",
            bigtiff="IF_SAFER",
            **layout,
            **georeference,
        )
        if product == CLASSES:
            colours = {k: (*colour, 255) for k, colour in enumerate(facts.class_colours)}
            file.write_colormap(1, colours | {NO_DATA: (0, 0, 0, 0)})
            file.update_tags(**{f"CLASS_{k}": name for k, name in enumerate(facts.class_names)})
        else:
            file.scales, file.offsets = (1 / HIGHEST,) * count, (0.0,) * count
            file.descriptions = facts.class_names if product == PROBABILITIES else ("confidence",)
            file.colorinterp = (ColorInterp.gray, *(ColorInterp.undefined,) * (count - 1))
        return file


def products_of(logits: np.ndarray, valid: np.ndarray, products: Sequence[Product]) -> dict[Product, np.ndarray]:
    """Converts logits [classes, H, W] to [bands, H, W] uint8 of every product; NO_DATA where not `valid`."""
    classes = np.argmax(logits, 0).astype(np.uint8)
    found = {CLASSES: np.where(valid, classes, NO_DATA)[None]}
    if len(products) > 1:
        probabilities = softmax(np.where(valid, logits, 0.0))
        stored = np.where(valid, np.rint(probabilities * HIGHEST), NO_DATA).astype(np.uint8)
        found |= {PROBABILITIES: stored, CONFIDENCE: np.where(valid, stored.max(0), NO_DATA)[None]}
    return {product: found[product] for product in products}


def reads_back(path: str, total: int) -> bool:
    """Whether a raster's bytes add up to `total`, and its overviews can be read."""
    sums = []
    try:
        with rasterio.open(path) as raster:
            levels = len(raster.overviews(1))
        for options in ({}, *({"OVERVIEW_LEVEL": level} for level in range(levels))):
            with rasterio.open(path, **options) as raster:
                windows = [window for _, window in raster.block_windows(1)]
                sums.append(sum(int(raster.read(window=window).sum(dtype=np.int64)) for window in windows))
    except rasterio.errors.RasterioIOError:
        return False
    return sums[0] == total


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the first axis."""
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def _cog_options(product: Product) -> dict[str, Any]:
    return {
        "COMPRESS": "DEFLATE",
        "PREDICTOR": product.predictor,
        "BLOCKSIZE": BLOCK,
        "OVERVIEW_RESAMPLING": product.overviews,
        "NUM_THREADS": "ALL_CPUS",
        "BIGTIFF": "IF_SAFER",
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the warning about missing georeferences; a scene without one gives a map without one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turns errors of GDAL and the operating system into a WorkdirError."""
    try:
        yield
    except (rasterio.errors.RasterioError, CPLE_BaseError, OSError) as error:
        raise WorkdirError(f"{path}: cannot be written ({error.__cause__ or error})") from error
