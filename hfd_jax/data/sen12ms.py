"""SEN12MS and DFC2020: Sentinel-1, Sentinel-2 and land cover, 256 x 256 pixels of 10 m.

    RAW_DIR/ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif      VV, VH, sigma0 in dB
    RAW_DIR/ROIs1158_spring/s2_1/ROIs1158_spring_s2_1_p30.tif      13 bands, reflectance x 10,000
    RAW_DIR/ROIs1158_spring/lc_1/ROIs1158_spring_lc_1_p30.tif      band 1: IGBP classes 1 to 17 (MODIS, 500 m)

DFC2020 has the groups ROIs0000_validation and ROIs0000_test, and `dfc` beside `lc`: land cover at 10 m.

SEN12MS is split by scene. The authors' 26 hold-out scenes form the test split. Of the others, about a tenth form the
validation split: those with a SHA-1 of the name divisible by ten, whichever seasons are present.
DFC2020 is for evaluation and has no training split.

The classes are the ten of the simplified IGBP scheme. "no_savanna" ignores savanna; "dfc2020" ignores savanna and snow,
as the contest does.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from hfd_jax.core.errors import DataError, nearest
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.options import option
from hfd_jax.data.builder import PairedTiles
from hfd_jax.data.facts import Facts
from hfd_jax.data.rasters import check_same_grid, crs_text, is_visible_tif, read_bands, read_image
from hfd_jax.data.reader import Reader
from hfd_jax.data.tiles import Tile

SEASONS = ("ROIs1158_spring", "ROIs1868_summer", "ROIs1970_fall", "ROIs2017_winter")
DFC_SPLITS = {"ROIs0000_validation": "validation", "ROIs0000_test": "test"}
SAR_BANDS = ("VV", "VH")
EO_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
LC_BANDS = ("IGBP", "LCCS_LC", "LCCS_LU", "LCCS_SH")
DFC_BANDS = ("class",)

_HOLD_OUT = {
    "ROIs1158_spring": (63, 146, 97, 124, 15, 17),
    "ROIs1868_summer": (43, 131, 19, 104, 72, 15, 79),
    "ROIs1970_fall": (120, 39, 144, 35, 61, 47, 30, 141),
    "ROIs2017_winter": (64, 146, 32, 107, 135),
}
HOLD_OUT_SCENES = frozenset(f"{season}/s1_{scene}" for season, scenes in _HOLD_OUT.items() for scene in scenes)
# Its Sentinel-1 image contains NaN; all published lists leave it out.
BROKEN = frozenset({"ROIs1868_summer/s1_146/ROIs1868_summer_s1_146_p202.tif"})

SIMPLIFIED = (
    ("forest", (0, 153, 0)),
    ("shrubland", (198, 176, 68)),
    ("savanna", (251, 255, 19)),
    ("grassland", (182, 255, 5)),
    ("wetlands", (39, 255, 135)),
    ("croplands", (194, 79, 68)),
    ("urban", (165, 165, 165)),
    ("snow", (105, 255, 248)),
    ("barren", (249, 255, 164)),
    ("water", (28, 13, 255)),
)
# Position: IGBP code 0 to 17. Value: code of the simplified scheme, 0 for unknown.
IGBP_TO_SIMPLIFIED = (0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10)
LEFT_OUT = {"simplified": (), "no_savanna": ("savanna",), "dfc2020": ("savanna", "snow")}


class Sen12ms(PairedTiles):
    """SEN12MS, land cover from MODIS."""

    VERSION = PairedTiles.VERSION


class Dfc2020(PairedTiles):
    """DFC2020, land cover at 10 m, for evaluation."""

    VERSION = PairedTiles.VERSION


@dataclasses.dataclass(frozen=True)
class Sen12msSource(Reader):
    """Reads SEN12MS; a `TileSource` whose keys are the paths of the Sentinel-1 files below raw_dir.

    Attributes:
      raw_dir: holds the folders of the seasons.
      classes: "simplified", "no_savanna" or "dfc2020".
      labels: source of the label, "lc" (IGBP) or "dfc".
    """

    builder = Sen12ms
    groups = SEASONS
    relisted = ("_listed",)

    raw_dir: str
    classes: str = option("simplified", "ten classes, without savanna, or DFC2020's eight", choices=tuple(LEFT_OUT))
    labels: str = "lc"

    @classmethod
    def recognise(cls, raw_dir: str) -> bool:
        return any(os.path.isdir(os.path.join(raw_dir, group)) for group in cls.groups)

    def __post_init__(self):
        if self.classes not in LEFT_OUT:
            raise DataError(f"classes is {self.classes!r}; {nearest(self.classes, LEFT_OUT)}")
        if not self.recognise(self.raw_dir):
            raise DataError(f"{self.raw_dir}: contains none of {', '.join(self.groups)}")

    @property
    def name(self) -> str:
        return self.classes

    @property
    def settings(self) -> dict[str, Any]:
        scenes = sorted({os.path.dirname(key) for key in self._paths})
        return {"classes": self.classes, "labels": self.labels, "patches": len(self._paths), "scenes": scenes}

    @property
    def facts(self) -> Facts:
        kept = [entry for entry in SIMPLIFIED if entry[0] not in LEFT_OUT[self.classes]]
        return Facts(
            name="sen12ms" if self.labels == "lc" else "dfc2020",
            sar_bands=SAR_BANDS,
            eo_bands=EO_BANDS,
            eo_dtype="uint16",
            sar_unit="db",
            class_names=tuple(name for name, _ in kept),
            class_colours=tuple(colour for _, colour in kept),
            look_axis="x",
            pixel_size=10.0,
        )

    def keys(self) -> dict[str, list[str]]:
        keys: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for path in self._paths:
            keys[self.split(os.path.dirname(path))].append(path)
        return keys

    def split(self, scene: str) -> str:
        """The split of a scene, for example "ROIs1158_spring/s1_63"."""
        return split_of(scene)

    def read(self, key: str) -> Tile:
        sar_path, eo_path, label_path = (self._file(key, source) for source in ("s1", "s2", self.labels))
        sar, sar_valid, grid = read_bands(sar_path, bands=SAR_BANDS, nodata=None)
        eo, eo_valid, eo_grid = read_bands(eo_path, bands=EO_BANDS, nodata=0)
        if eo.dtype != np.uint16:
            raise DataError(f"{eo_path}: type {eo.dtype}; expected uint16, reflectance x 10,000")
        codes, label_grid = read_image(label_path, bands=LC_BANDS if self.labels == "lc" else DFC_BANDS)
        for path, other in ((eo_path, eo_grid), (label_path, label_grid)):
            check_same_grid(path, other, sar_path, grid)
        return Tile(
            id=os.path.basename(key)[: -len(".tif")].replace("_s1_", "_"),
            sar=sar.astype(np.float32),
            eo=eo,
            label=self._class_index(codes[..., 0], label_path),
            sar_valid=sar_valid,
            eo_valid=eo_valid,
            crs=crs_text(grid),
            transform=tuple(grid["transform"])[:6],
        )

    @property
    def left_out(self) -> dict[str, int]:
        broken = len(self._listed & BROKEN)
        return {"with NaN, as in all published lists": broken} if broken else {}

    @property
    def _paths(self) -> list[str]:
        return sorted(self._listed - BROKEN)

    @functools.cached_property
    def _listed(self) -> set[str]:
        """Patches that any source has; reading a patch reports a missing partner."""
        sources = ("s1", "s2", self.labels)
        paths = {path for group in self.groups for path in _list_patches(self.raw_dir, group, sources)}
        if not paths:
            raise DataError(f"{self.raw_dir}: contains no patch of {', '.join(sources)}")
        return paths

    def _file(self, key: str, source: str) -> str:
        return os.path.join(self.raw_dir, swap_source(key, "s1", source))

    def _class_index(self, codes: np.ndarray, path: str) -> np.ndarray:
        known = IGBP_TO_SIMPLIFIED if self.labels == "lc" else range(len(SIMPLIFIED) + 1)
        if codes.dtype.kind not in "iu":
            raise DataError(f"{path}: type {codes.dtype}; expected integers")
        unknown = np.setdiff1d(codes, range(len(known)))
        if unknown.size:
            raise DataError(f"{path}: label code {unknown[0]} is invalid; expected 0 (unknown) to {len(known) - 1}")
        return index_table(known, self.classes)[codes]


@dataclasses.dataclass(frozen=True)
class Dfc2020Source(Sen12msSource):
    """Reads DFC2020 with its 10 m labels; it has the classes of SEN12MS and no training split."""

    builder = Dfc2020
    groups = tuple(DFC_SPLITS)

    labels: str = "dfc"

    def split(self, scene: str) -> str:
        return DFC_SPLITS[os.path.dirname(scene)]


def split_of(scene: str) -> str:
    """The split of a SEN12MS scene, for example "ROIs1158_spring/s1_63"."""
    if scene in HOLD_OUT_SCENES:
        return "test"
    return "validation" if int(hashlib.sha1(scene.encode()).hexdigest(), 16) % 10 == 0 else "train"


def index_table(simplified: Iterable[int], classes: str) -> np.ndarray:
    """Stored code -> class index or IGNORE_LABEL.

    Args:
      simplified: the code in the simplified scheme for each stored code, 0 for unknown.
      classes: one of LEFT_OUT.
    """
    kept = [name for name, _ in SIMPLIFIED if name not in LEFT_OUT[classes]]
    names = [None, *(name for name, _ in SIMPLIFIED)]
    return np.array([kept.index(names[c]) if names[c] in kept else IGNORE_LABEL for c in simplified], np.uint8)


def swap_source(path: str, one: str, other: str) -> str:
    """Path of the same patch from another source, whose name is part of the folder's and the file's name."""
    folder, name = os.path.split(path)
    group, scene = os.path.split(folder)
    return os.path.join(group, scene.replace(f"{one}_", f"{other}_", 1), name.replace(f"_{one}_", f"_{other}_", 1))


def _list_patches(raw_dir: str, group: str, sources: tuple[str, ...]) -> Iterable[str]:
    root = os.path.join(raw_dir, group)
    for scene in os.listdir(root) if os.path.isdir(root) else ():
        source = scene.split("_")[0]
        if source in sources and os.path.isdir(os.path.join(root, scene)):
            for name in os.listdir(os.path.join(root, scene)):
                if is_visible_tif(name):
                    yield swap_source(os.path.join(group, scene, name), source, "s1")
