"""WHU-OPT-SAR: Gaofen-1 optical and Gaofen-3 SAR scenes of Hubei with land cover, 5556 x 3704 pixels of 5 m.

    RAW_DIR/optical/NH49E001013.tif      R, G, B, NIR
    RAW_DIR/sar/NH49E001013.tif          one band
    RAW_DIR/lbl/NH49E001013.tif          codes 10 to 70 in tens; 0, background, is ignored

The 20 test scenes are those of the authors' list. Every eighth of the other scenes, sorted by name, is for validation.
Scenes are read and stored in blocks. A label raster may lack the last row or column (one published raster does), which
is then ignored; any other difference in size is an error.
"""

import contextlib
import dataclasses
import functools
import os
from typing import Any

import numpy as np
import rasterio.windows

from hfd_jax.core.errors import DataError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.options import option
from hfd_jax.data.builder import PairedTiles
from hfd_jax.data.facts import Facts
from hfd_jax.data.rasters import (
    check_same_grid,
    crs_text,
    cut_blocks,
    is_visible_tif,
    open_raster,
    read_bands,
    read_image,
    stored_type,
)
from hfd_jax.data.reader import Reader
from hfd_jax.data.tiles import Tile

FOLDERS = ("sar", "optical", "lbl")
SAR_BANDS, EO_BANDS = ("GF3",), ("R", "G", "B", "NIR")
CLASSES = {
    10: ("farmland", (204, 180, 80)),
    20: ("city", (220, 60, 60)),
    30: ("village", (240, 150, 150)),
    40: ("water", (0, 90, 200)),
    50: ("forest", (0, 120, 50)),
    60: ("road", (110, 110, 110)),
    70: ("others", (190, 190, 190)),
}
# The list "the division of the dataset" of the authors.
TEST_SCENES = frozenset(
    (
        "NH49E001014",
        "NH49E001017",
        "NH49E002012",
        "NH49E002016",
        "NH49E003014",
        "NH49E003024",
        "NH49E004011",
        "NH49E005011",
        "NH49E005019",
        "NH49E006019",
        "NH49E007014",
        "NH49E008013",
        "NH49E009017",
        "NH49E010020",
        "NH49E011024",
        "NH49E012020",
        "NH49E013010",
        "NH50E007002",
        "NH50E011005",
        "NH50E014003",
    )
)
VALIDATION_EVERY = 8


class WhuOptSar(PairedTiles):
    """WHU-OPT-SAR, land cover."""

    VERSION = PairedTiles.VERSION


@dataclasses.dataclass(frozen=True)
class WhuOptSarSource(Reader):
    """Reads WHU-OPT-SAR; a `TileSource` whose keys are (scene, rows, columns).

    Attributes:
      raw_dir: folder that contains optical, sar and lbl.
      block: largest side length of a stored block, pixels.
    """

    builder = WhuOptSar
    relisted = ("_scenes", "_keys")

    raw_dir: str
    block: int = option(512, "largest side length of a stored block, pixels", above=0)

    @staticmethod
    def recognise(raw_dir: str) -> bool:
        return all(os.path.isdir(os.path.join(raw_dir, folder)) for folder in FOLDERS)

    def __post_init__(self):
        for folder in FOLDERS:
            if not os.path.isdir(os.path.join(self.raw_dir, folder)):
                raise DataError(f"{os.path.join(self.raw_dir, folder)}: no such folder")

    @property
    def name(self) -> str:
        return "scenes"

    @property
    def settings(self) -> dict[str, Any]:
        return {"block": self.block, "scenes": self._scenes}

    @functools.cached_property
    def facts(self) -> Facts:
        paths = (self._file("optical", scene) for scene in self._scenes)
        return Facts(
            name="whu_opt_sar",
            sar_bands=SAR_BANDS,
            eo_bands=EO_BANDS,
            eo_dtype=stored_type(paths, os.path.join(self.raw_dir, "optical")),
            sar_unit="raw",
            class_names=tuple(name for name, _ in CLASSES.values()),
            class_colours=tuple(colour for _, colour in CLASSES.values()),
            look_axis="x",
            pixel_size=5.0,
        )

    def keys(self) -> dict[str, list[Any]]:
        return self._keys

    @functools.cached_property
    def _keys(self) -> dict[str, list[Any]]:  # opens one raster of every scene
        keys: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}
        for split, scenes in divide(self._scenes).items():
            for scene in scenes:
                height, width = self._size(scene)
                keys[split] += [(scene, *block) for block in cut_blocks(height, width, self.block)]
        return keys

    def read(self, key: tuple[str, tuple[int, int], tuple[int, int]]) -> Tile:
        scene, rows, columns = key
        window = rasterio.windows.Window.from_slices(rows, columns)
        sar_path, eo_path = self._file("sar", scene), self._file("optical", scene)
        sar, sar_valid, grid = read_bands(sar_path, window, SAR_BANDS)
        eo, eo_valid, eo_grid = read_bands(eo_path, window, EO_BANDS, nodata=0)
        check_same_grid(eo_path, eo_grid, sar_path, grid)
        return Tile(
            id=f"{scene}_{rows[0]}_{columns[0]}",
            sar=sar.astype(np.float32),
            eo=eo,
            label=self._label(scene, rows, columns, sar_path, grid),
            # Dark SAR pixels are 0 too: a pixel has no data only if both sensors are 0.
            sar_valid=sar_valid & (sar.any(-1) | eo.any(-1)),
            eo_valid=eo_valid,
            crs=crs_text(grid),
            transform=tuple(rasterio.windows.transform(window, grid["transform"]))[:6],
        )

    @functools.cached_property
    def _scenes(self) -> list[str]:
        listed = {
            folder: {name[:-4] for name in os.listdir(os.path.join(self.raw_dir, folder)) if is_visible_tif(name)}
            for folder in FOLDERS
        }
        everything = set.union(*listed.values())
        if not everything:
            raise DataError(f"{os.path.join(self.raw_dir, 'sar')}: contains no .tif file")
        return sorted(everything)

    def _size(self, scene: str) -> tuple[int, int]:
        """Size of a readable raster of the scene, or (1, 1) if none is readable; reading the scene raises the error."""
        for folder in FOLDERS:
            with contextlib.suppress(DataError), open_raster(self._file(folder, scene)) as raster:
                return raster.shape
        return 1, 1

    def _file(self, folder: str, scene: str) -> str:
        return os.path.join(self.raw_dir, folder, f"{scene}.tif")

    def _label(self, scene: str, rows: tuple[int, int], columns: tuple[int, int], sar_path: str, grid) -> np.ndarray:
        path = self._file("lbl", scene)
        window = rasterio.windows.Window.from_slices(rows, columns)
        with open_raster(path) as raster:
            size = raster.shape
        lacking = np.subtract(grid["size"], size)
        if lacking.min() < 0 or lacking.max() > 1:
            raise DataError(f"{path}: {size} pixels (rows, columns); {sar_path} has {grid['size']}")
        whole = rasterio.windows.Window(0, 0, size[1], size[0])
        codes, label_grid = read_image(path, window.intersection(whole), ("code",))
        check_same_grid(path, label_grid | {"size": grid["size"]}, sar_path, grid)
        codes = codes[..., 0]
        label = np.full((rows[1] - rows[0], columns[1] - columns[0]), IGNORE_LABEL, np.uint8)
        unknown = sorted(set(np.unique(codes).tolist()) - {0, *CLASSES})
        if unknown:
            raise DataError(
                f"{path}: label code {unknown[0]} is invalid; expected 0 (background) or one of {[*CLASSES]}"
            )
        label[: codes.shape[0], : codes.shape[1]] = np.where(codes == 0, IGNORE_LABEL, codes // 10 - 1)
        return label


def divide(scenes: list[str]) -> dict[str, list[str]]:
    """Divides names of scenes into train, validation and test."""
    rest = [scene for scene in scenes if scene not in TEST_SCENES]
    validation = rest[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]
    return {
        "train": [scene for scene in rest if scene not in validation],
        "validation": validation,
        "test": [scene for scene in scenes if scene in TEST_SCENES],
    }
