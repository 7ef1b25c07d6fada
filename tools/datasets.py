"""The raw data sets that tools read, and their options on the command line."""

import argparse
import os

from hfd_jax.core.errors import DataError
from hfd_jax.data import sen12ms, spacenet6, whu_opt_sar
from hfd_jax.data.builder import PairedTiles
from hfd_jax.data.folder import Folder, FolderSource
from hfd_jax.data.tiles import TileSource

NAMES = ("folder", "spacenet6", "sen12ms", "dfc2020", "whu_opt_sar")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what decides how a raw data set is read."""
    parser.add_argument("--description", help="folder: the description, if it is not RAW_DIR/dataset.json")
    group = parser.add_argument_group("spacenet6")
    group.add_argument("--eo_product", choices=tuple(spacenet6.EO_BANDS), default="PS-RGB", help="optical product")
    group.add_argument(
        "--splitting", choices=spacenet6.SPLITTINGS, default="ten_fold", help="see hfd_jax/data/spacenet6.py"
    )
    group.add_argument("--fold", type=int, default=0, help="of ten_fold, 0 to 9")
    group.add_argument("--min_area", type=float, default=0.0, help="smaller footprints are not drawn, square metres")
    group.add_argument("--sar_order", default="", help="stored order of the SAR bands, if not HH,HV,VH,VV")
    group.add_argument("--eo_order", default="", help="stored order of the optical bands, if not R,G,B or B,G,R,NIR")
    group = parser.add_argument_group("sen12ms and dfc2020")
    group.add_argument(
        "--classes",
        choices=tuple(sen12ms.LEFT_OUT),
        default="simplified",
        help="ten classes; without savanna; the eight that DFC2020 scores",
    )
    group = parser.add_argument_group("whu_opt_sar")
    group.add_argument("--block", type=int, default=512, help="largest edge of a stored block, pixels")


def make_source(name: str, raw_dir: str, arguments: argparse.Namespace) -> tuple[type[PairedTiles], TileSource]:
    """The builder and the source of a raw data set; DataError where the folder is not one."""
    if not os.path.isdir(raw_dir):
        raise DataError(f"{raw_dir}: no such folder")
    if name == "folder":
        return Folder, FolderSource(raw_dir, arguments.description)
    if name == "spacenet6":
        options = {
            key: getattr(arguments, key)
            for key in ("eo_product", "splitting", "fold", "min_area", "sar_order", "eo_order")
        }
        return spacenet6.Spacenet6, spacenet6.Spacenet6Source(raw_dir, **options)
    if name == "whu_opt_sar":
        return whu_opt_sar.WhuOptSar, whu_opt_sar.WhuOptSarSource(raw_dir, arguments.block)
    if name == "dfc2020":
        return sen12ms.Dfc2020, sen12ms.Dfc2020Source(raw_dir, arguments.classes)
    return sen12ms.Sen12ms, sen12ms.Sen12msSource(raw_dir, arguments.classes)


def recognise(raw_dir: str) -> str:
    """The name of the data set whose layout the folder has; DataError where it has none."""
    there = set(os.listdir(raw_dir)) if os.path.isdir(raw_dir) else set()
    nested = os.path.join(raw_dir, "train", spacenet6.AREA)
    if "dataset.json" in there:
        return "folder"
    if spacenet6.SAR in there or os.path.isdir(nested):
        return "spacenet6"
    if there & set(sen12ms.SEASONS):
        return "sen12ms"
    if there & set(sen12ms.DFC_SPLITS):
        return "dfc2020"
    if set(whu_opt_sar.FOLDERS) <= there:
        return "whu_opt_sar"
    raise DataError(f"{raw_dir}: not the layout of a known data set; name it with --dataset ({', '.join(NAMES)})")
