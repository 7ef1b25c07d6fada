"""Drafts a dataset.json from the files in a folder: patterns, sensors, units, codes and a split to correct by hand."""

import collections
import dataclasses
import os
import re
from typing import Any

import numpy as np
import rasterio.windows

from hfd_jax.core.errors import DataError
from hfd_jax.data.described.patterns import RASTER_ENDINGS
from hfd_jax.data.rasters import data_bands, is_complex, open_raster, read_window

SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
                 "validation": "validation", "test": "test", "testing": "test"}  # fmt: skip
HINTS = {
    "label": r"label|mask|target|lbl|lulc|\blc|truth|\bgt|class|damage|annot",
    "sar": r"sar|s1|vv|vh|radar|palsar|gf3|grd|sigma|post",
    "eo": r"eo|s2|rgb|optical|opt|ms|pre|l2a|l1c|b\d\d",
}
LISTS = r"(?:.*[_\-])?(train|training|validation|valid|val|testing|test)(?:[_\-].*)?\.(txt|csv)"
SENTINEL_2 = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]
OPENED, MOST_CODES, LARGEST_READ = 8, 60, 1024


@dataclasses.dataclass
class Series:
    """Files of one pattern, and what a few of them hold.

    Attributes:
      pattern: such as "S1Hand/{id}_S1Hand.tif".
      files: paths below the raw folder.
      bands: number of bands.
      dtype: pixel type.
      size: rows and columns of the first file.
      low, high: 1st and 99th percentile of a sample.
      codes: distinct values of the first band, if they are few integers.
    """

    pattern: str
    files: list[str]
    bands: int = 0
    dtype: str = ""
    size: tuple[int, int] = (0, 0)
    low: float = 0.0
    high: float = 0.0
    codes: list[int] | None = None


def draft(raw_dir: str) -> dict[str, Any]:
    """Returns a description with comments ("//KEY") on what has to be checked.

    Raises:
      DataError: the folder holds no raster of at least two kinds.
    """
    series = find_series(raw_dir)
    for one in series:
        _look_into(raw_dir, one)
    kinds = _kinds(series)
    missing = [kind for kind in ("sar", "eo") if kind not in kinds]
    if missing:
        found = ", ".join(one.pattern for one in series) or "no raster"
        raise DataError(f"{raw_dir}: found {found}; expected rasters of SAR and of EO, in folders of their own")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", os.path.basename(os.path.abspath(raw_dir))).strip("._-") or "my_data"
    text: dict[str, Any] = {
        "//": "Drafted by tools.describe: check the lines with a comment, then run tools.check_data.",
        "name": name,
        "sar": _sar(kinds["sar"]),
        "eo": _eo(kinds["eo"]),
        "label": _label(kinds.get("label"), _vectors(raw_dir)),
        "//look_axis": "x: the radar looks along the rows, as Sentinel-1 nearly does; y: along columns; any: it does "
        "not matter, and training may flip and rotate the images",
        "look_axis": "x",
    }
    return text | _split(raw_dir, kinds["sar"][0].pattern)


def find_series(raw_dir: str) -> list[Series]:
    """Groups the rasters below a folder by folder and by the parts of their names that all share."""
    folders: dict[tuple[str, str], dict[str, list[str]]] = {}
    for folder, names, files in os.walk(raw_dir):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for file in sorted(files):
            ending = os.path.splitext(file)[1].lower()
            if file.startswith(".") or ending not in RASTER_ENDINGS:
                continue
            below = os.path.relpath(folder, raw_dir).replace(os.sep, "/")
            parts = [] if below == "." else below.split("/")
            general = "/".join("{folder}" if part.lower() in SPLIT_FOLDERS else part for part in parts)
            path = "/".join([*parts, file])
            folders.setdefault((general, ending), {}).setdefault(_last(file), []).append(path)
    series = []
    for (folder, ending), groups in folders.items():
        # x_VV.tif and x_VH.tif are two series; x_1.tif and x_2.tif are one.
        apart = 1 < len(groups) <= 20 and all(len(files) > 1 and not key.isdigit() for key, files in groups.items())
        together = [path for of_group in groups.values() for path in of_group]
        for members in groups.values() if apart else _alike(raw_dir, together):
            stems = [os.path.splitext(os.path.basename(path))[0] for path in members]
            shared_folder = f"{folder}/" if folder else ""
            series.append(Series(f"{shared_folder}{_template(stems)}{ending}", sorted(members)))
    return sorted(series, key=lambda one: one.pattern)


def _alike(raw_dir: str, files: list[str]) -> list[list[str]]:
    """Files of one folder; a few of different bands are scenes of their own."""
    if len(files) > OPENED:
        return [files]
    bands = set()
    for path in files:
        with open_raster(os.path.join(raw_dir, path)) as raster:
            bands.add((raster.count, raster.dtypes[0]))
    return [files] if len(bands) == 1 else [[path] for path in files]


def _last(file: str) -> str:
    stem = os.path.splitext(file)[0]
    return stem.rsplit("_", 1)[1] if "_" in stem else ""


def _template(stems: list[str]) -> str:
    """What all stems share, around {id}; the only stem as it stands."""
    if len(set(stems)) == 1:
        return stems[0]
    start, end = _shared(stems), _shared([stem[::-1] for stem in stems])[::-1]
    # Fields begin and end at separators, so that 0010 and 0011 are no {id} of one digit.
    start = re.match(r"(.*[_\-.])?", start)[0]
    end = re.search(r"([_\-.].*)?$", end)[0]
    shortest = min(map(len, stems))
    return f"{start}{{id}}{end if len(start) + len(end) < shortest else ''}"


def _shared(texts: list[str]) -> str:
    """The characters with which all texts begin."""
    first, last = min(texts), max(texts)
    count = next((k for k, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:count]


def _look_into(raw_dir: str, series: Series) -> None:
    samples, codes = [], set()
    step = max(1, len(series.files) // OPENED)
    for path in series.files[::step][:OPENED]:
        with open_raster(os.path.join(raw_dir, path)) as raster:
            numbers = data_bands(raster)
            if not samples:
                series.bands, series.dtype, series.size = len(numbers), raster.dtypes[0], raster.shape
            if is_complex(raster.dtypes[0]):
                raise DataError(f"{raster.name}: is complex; take the squared magnitude first")
            height, width = (min(length, LARGEST_READ) for length in raster.shape)
            row, col = ((full - part) // 2 for full, part in zip(raster.shape, (height, width), strict=True))
            image = read_window(raster, rasterio.windows.Window(col, row, width, height), numbers)
            codes |= set(np.unique(image[0][np.isfinite(image[0])])[: MOST_CODES + 1].tolist())
            samples.append(image[:, :: max(1, height // 64), :: max(1, width // 64)].astype(float).ravel())
    values = np.concatenate(samples)
    values = values[np.isfinite(values)]
    if len(values):
        series.low, series.high = (float(v) for v in np.percentile(values, (1, 99)))
    if len(codes) <= MOST_CODES and all(float(code).is_integer() for code in codes):
        series.codes = sorted(int(code) for code in codes)


def _kinds(series: list[Series]) -> dict[str, list[Series]]:
    """Kind -> its series; those with the most files come first, several of a kind are stacked."""
    scores: dict[str, list[Series]] = collections.defaultdict(list)
    for one in series:
        hinted = [kind for kind, words in HINTS.items() if re.search(words, one.pattern.lower())]
        labelled = one.bands == 1 and one.codes is not None
        if labelled and ("label" in hinted or not {"sar", "eo"} & set(hinted)):
            kind = "label"
        elif one.bands <= 4 and (one.low < 0 or ("sar" in hinted and one.bands <= 2) or hinted[:1] == ["sar"]):
            kind = "sar"
        elif one.bands >= 3 or "eo" in hinted:
            kind = "eo"
        else:
            kind = "sar"
        scores[kind].append(one)
    found = {}
    for kind, members in scores.items():
        most = max(len(one.files) for one in members)
        same = [one for one in members if len(one.files) == most]
        # Single bands in files of their own belong together; of several whole images, the first is taken.
        found[kind] = same if len(same) > 1 and all(one.bands == 1 for one in same) and kind != "label" else same[:1]
    return found


def _files(series: list[Series]) -> Any:
    return series[0].pattern if len(series) == 1 else [one.pattern for one in series]


def _sar(series: list[Series]) -> dict[str, Any]:
    bands = sum(one.bands for one in series)
    low, high = min(one.low for one in series), max(one.high for one in series)
    unit = "db" if low < 0 else "linear" if series[0].dtype.startswith("float") and high < 30 else "raw"
    names = {1: ["VV"], 2: ["VV", "VH"], 4: ["HH", "HV", "VH", "VV"]}.get(bands, [f"S{k + 1}" for k in range(bands)])
    return {
        "files": _files(series),
        "//bands": f"{bands} band(s) of {series[0].dtype}; check the names and their order",
        "bands": names,
        "//unit": f"values from {low:.4g} to {high:.4g} (1st to 99th percentile)",
        "unit": unit,
    }


def _eo(series: list[Series]) -> dict[str, Any]:
    bands = sum(one.bands for one in series)
    names = {1: ["PAN"], 3: ["R", "G", "B"], 4: ["R", "G", "B", "NIR"], 12: SENTINEL_2[:10] + SENTINEL_2[11:]}
    names[13] = SENTINEL_2
    return {
        "files": _files(series),
        "//bands": f"{bands} band(s) of {series[0].dtype}; check the names and their order",
        "bands": names.get(bands, [f"B{k + 1}" for k in range(bands)]),
        "//nodata": "0 in all bands is taken for no data; null if it is a value",
        "nodata": 0,
    }


def _label(series: list[Series] | None, vectors: list[str]) -> dict[str, Any]:
    if not series:
        classes = [{"code": 0, "name": "class_0"}, {"code": 1, "name": "class_1"}]
        if vectors:
            return {
                "files": vectors[0],
                "//column": "the column with the classes; its values are the codes",
                "column": "class",
                "classes": classes,
            }
        return {"//files": "no raster looks like a label: all tiles are unlabelled", "files": None, "classes": classes}
    codes = series[0].codes or []
    ignored = [code for code in codes if code < 0 or (code == 255 and len(codes) > 2)]
    kept = [code for code in codes if code not in ignored]
    while len(kept) < 2:  # a description needs two classes
        kept.append(max(kept, default=-1) + 1)
    found = {
        "files": series[0].pattern,
        "//classes": f"codes in {min(len(series[0].files), OPENED)} file(s): name them, add rare ones, move others "
        "to ignore",
        "classes": [{"code": code, "name": f"class_{code}"} for code in kept],
    }
    return found | ({"ignore": ignored} if ignored else {})


def _vectors(raw_dir: str) -> list[str]:
    return sorted(name for name in os.listdir(raw_dir) if name.lower().endswith((".gpkg", ".geojson", ".shp", ".fgb")))


def _split(raw_dir: str, pattern: str) -> dict[str, Any]:
    if "{folder}" in pattern:
        position = pattern.split("/").index("{folder}")
        parent = os.path.join(raw_dir, *pattern.split("/")[:position])
        found = {SPLIT_FOLDERS[name.lower()]: name for name in os.listdir(parent) if name.lower() in SPLIT_FOLDERS}
        if {"train", "test"} <= set(found):
            split = {"by": "field", "field": "folder", **found}
            return {"//split": "the published folders; do they share scenes?", "split": split}
    if "{" not in pattern:
        return {
            "//split": "blocks on the ground of one scene: metres",
            "block": 256,
            "split": {"by": "blocks", "size": 10000, "margin": 0, "seed": 0, "validation": 0.1, "test": 0.2},
        }
    lists: dict[str, str] = {}
    for folder, _, files in os.walk(raw_dir):
        for file in sorted(files):
            if match := re.fullmatch(LISTS, file.lower()):
                path = os.path.relpath(os.path.join(folder, file), raw_dir).replace(os.sep, "/")
                lists.setdefault(SPLIT_FOLDERS[match[1]], path)
    if {"train", "test"} <= set(lists):
        return {"split": {"by": "list", **lists}}
    return {
        "//split": "tiles at random; tiles of one scene or region belong together: name it in the pattern, as "
        "{region}_{id}, and add 'groups': 'region'",
        "split": {"by": "random", "seed": 0, "validation": 0.1, "test": 0.2},
    }
