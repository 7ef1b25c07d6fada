"""Divides the tiles of a description into splits: by lists, fields, longitude, columns, at random, or in blocks."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import rasterio.warp

from hfd_jax.core.errors import DataError, nearest
from hfd_jax.data.described.description import KINDS, Description
from hfd_jax.data.described.pairs import Pairs
from hfd_jax.data.described.patterns import RASTER_ENDINGS
from hfd_jax.data.described.tables import locate, read_lines
from hfd_jax.data.facts import SPLITS
from hfd_jax.data.longitudes import is_within
from hfd_jax.data.rasters import Grid

EQUAL_AREA = "EPSG:6933"  # metres everywhere, for tiles that share no projected CRS
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a tile: rows and columns [start, stop)."""

    name: str
    rows: Span
    cols: Span


def in_fold(description: Description, pairs: Pairs, fold: str | None) -> Description:
    """Resolves split.by "fold", for cross-validation, to a split by field.

    Args:
      description: of the data set.
      pairs: its tiles.
      fold: value of split.field: its tiles are the test split, and all but those of split.validation train.

    Returns:
      The description with that split and "_fold<fold>" at the end of its name; itself if it has no folds.

    Raises:
      DataError: the description has folds and `fold` is none of them, or it has none and `fold` is given.
    """
    split, path = description.split, description.path
    if split["by"] != "fold":
        if fold is not None:
            raise DataError(f"{path}: split.by is {split['by']!r}; --test_fold needs 'fold'")
        return description
    chosen = split.get("validation", [])
    validation = [str(value) for value in (chosen if isinstance(chosen, list) else [chosen])]
    found = {_value(description, pairs, name, split["field"]) for name in pairs.names} - set(validation)
    if fold is None:
        raise DataError(
            f"{path}: split.by is 'fold'; choose the test tiles with --test_fold, one of: {', '.join(sorted(found))}"
        )
    if fold not in found:
        raise DataError(f"--test_fold={fold}: no tile has this {split['field']}; {nearest(fold, sorted(found))}")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", fold):
        raise DataError(
            f"--test_fold={fold}: becomes part of a folder's name; expected letters, digits, '_', '-' and '.'"
        )
    parts = {"train": sorted(found - {fold}), "test": fold} | ({"validation": validation} if validation else {})
    resolved = {"by": "field", "field": split["field"], **parts}
    return dataclasses.replace(description, split=resolved, name=f"{description.name}_fold{fold}")


# (tile name, its grid) -> {split: columns [start, stop)}
Parts = Callable[[str, Grid], dict[str, Span]]


class Splits:
    """Assigns tiles, or parts of them, to splits.

    Args:
      description: of the data set.
      pairs: its tiles.
      raw_dir: the raw folder.

    Attributes:
      lists: split -> names of its tiles, if whole tiles are assigned without looking at their grids; else empty.

    Raises:
      DataError: a list or a field names something that does not exist, or splits share tiles.
    """

    def __init__(self, description: Description, pairs: Pairs, raw_dir: str):
        self._text, self._split, self._pairs = description, description.split, pairs
        by = self._split["by"]
        self.lists: dict[str, set[str]] = {}
        if by == "list":
            self.lists = _read_lists(description, pairs, raw_dir)
        elif by == "field":
            self.lists = _by_value(description, pairs)
        elif by == "random":
            self.lists = _drawn(self._groups(), self._split)
        elif by == "unlabelled":
            self.lists = {"unlabelled": set(pairs.names)}

    @property
    def in_blocks(self) -> bool:
        return self._split["by"] == "blocks"

    def parts(self, name: str, grid: Grid) -> dict[str, Span]:
        """split -> columns [start, stop) of a tile; empty if it belongs to none."""
        by, everything = self._split["by"], (0, grid["size"][1])
        ranges = {split: self._split[split] for split in SPLITS if split in self._split}
        if by == "columns":
            edges = {split: tuple(round(end * everything[1]) for end in ends) for split, ends in ranges.items()}
            return {split: span for split, span in edges.items() if span[0] < span[1]}
        if by == "longitude":
            centre = self._longitude(name, grid)
            return {split: everything for split, (start, stop) in ranges.items() if is_within(centre, start, stop)}
        return {split: everything for split, names in self.lists.items() if name in names}

    def divide(self, windows: Sequence[Window], grids: Mapping[str, Grid]) -> dict[str, list[Window]]:
        """Divides windows by blocks on the ground; windows within the margin of another split are left out."""
        size, margin = float(self._split["size"]), float(self._split.get("margin", 0))
        boxes = _boxes([self._placed(window.name, grids[window.name]) for window in windows], windows)
        origin = np.array([boxes[:, 0].min(), boxes[:, 3].max()])
        # An edge that only rounding puts across a border does not count.
        west, north = boxes[:, 0] - margin + 1e-6 * size, boxes[:, 3] + margin - 1e-6 * size
        east, south = boxes[:, 2] + margin - 1e-6 * size, boxes[:, 1] - margin + 1e-6 * size
        first = np.floor(np.stack([west - origin[0], origin[1] - north], -1) / size).astype(int)
        last = np.floor(np.stack([east - origin[0], origin[1] - south], -1) / size).astype(int)
        own = np.floor(
            np.stack([boxes[:, [0, 2]].mean(1) - origin[0], origin[1] - boxes[:, [1, 3]].mean(1)], -1) / size
        )
        groups: dict[Any, list[int]] = {}
        for index, block in enumerate(map(tuple, own.astype(int))):
            groups.setdefault(block, []).append(index)
        drawn = _drawn(groups, self._split)
        split_of = {block: split for split, members in drawn.items() for block in groups if groups[block][0] in members}
        found: dict[str, list[Window]] = {}
        for index, window in enumerate(windows):
            split = split_of[tuple(own[index].astype(int))]
            touched = (
                split_of.get((x, y), split)
                for x in range(first[index, 0], last[index, 0] + 1)
                for y in range(first[index, 1], last[index, 1] + 1)
            )
            if all(other == split for other in touched):
                found.setdefault(split, []).append(window)
        return found

    def _groups(self) -> dict[str, list[str]]:
        key, groups = self._split.get("groups"), {}
        for name in self._pairs.names:
            groups.setdefault(_value(self._text, self._pairs, name, key) if key else name, []).append(name)
        return groups

    def _longitude(self, name: str, grid: Grid) -> float:
        crs, (height, width) = grid["crs"], grid["size"]
        if crs is None:
            path = self._pairs.paths("sar", name)[0]
            raise DataError(f"{path}: has no CRS; a split by longitude needs one")
        x, y = grid["transform"] @ (width / 2, height / 2)
        (longitude,), _ = rasterio.warp.transform(crs, "EPSG:4326", [x], [y])
        return (longitude + 180) % 360 - 180

    def _placed(self, name: str, grid: Grid) -> Grid:
        if grid["crs"] is None:
            path = self._pairs.paths("sar", name)[0]
            raise DataError(f"{path}: has no CRS; a split by blocks needs one")
        return grid


def _boxes(grids: Sequence[Grid], windows: Sequence[Window]) -> np.ndarray:
    """[N, 4] west, south, east, north of windows, metres in one CRS."""
    systems = {grid["crs"].to_string() for grid in grids}
    one = grids[0]["crs"]
    common = one if len(systems) == 1 and one.is_projected else rasterio.CRS.from_string(EQUAL_AREA)
    unit = one.linear_units_factor[1] if common == one else 1.0
    boxes = []
    for grid, window in zip(grids, windows, strict=True):
        corners = [grid["transform"] @ (x, y) for x in window.cols for y in window.rows]
        xs, ys = zip(*corners, strict=True)
        if grid["crs"] != common:
            xs, ys = rasterio.warp.transform(grid["crs"], common, xs, ys)
        boxes.append((min(xs), min(ys), max(xs), max(ys)))
    return np.array(boxes, float) * unit


def _read_lists(text: Description, pairs: Pairs, raw_dir: str) -> dict[str, set[str]]:
    known, lists = _known_names(pairs), {}
    for split in (split for split in SPLITS if split in text.split):
        files = text.split[split]
        names: set[str] = set()
        for file in [files] if isinstance(files, str) else files:
            path = locate(file, text.path, raw_dir, "a split list")
            names |= _listed(path, known, pairs)
            for other, earlier in lists.items():
                if names & earlier:
                    both = min(names & earlier)
                    raise DataError(f"{path}: {both!r} is also in split {other!r}; splits must not share tiles")
        lists[split] = names
    return lists


def _listed(path: str, known: Mapping[str, str], pairs: Pairs) -> set[str]:
    names, rows = set(), read_lines(path)
    for number, cells in enumerate(rows):
        found = {known[form] for cell in cells for form in _forms(cell) if known.get(form)}
        if len(found) == 1:
            names |= found
        elif found:
            raise DataError(f"{path}: the line {','.join(cells)!r} names the tiles {', '.join(sorted(found)[:5])}")
        elif number or len(cells) == 1:  # the first line of a CSV may be its header
            shown = next(filter(None, cells))
            example = pairs.paths("sar", pairs.names[0])[0]
            expected = os.path.join(os.path.dirname(example), shown + os.path.splitext(example)[1])
            raise DataError(
                f"{path}: lists {shown!r}, but {expected} does not exist; expected names of tiles, such as "
                f"{pairs.names[0]}, or of their files"
            )
    if not names:
        raise DataError(f"{path}: lists no tile; expected one name in each line")
    return names


def _known_names(pairs: Pairs) -> dict[str, str]:
    """Every text that names one tile alone -> the tile's name; texts that name several -> ""."""
    known: dict[str, str] = {}
    for name in pairs.names:
        forms = {
            form for kind in KINDS for path in pairs.paths(kind, name) for form in _forms(path)
        }  # a whole path ends in the same parts as a listed one
        for form in forms:
            known[form] = name if known.get(form, name) == name else ""
    return known | {name: name for name in pairs.names}


def _forms(text: str) -> list[str]:
    """A listed name as it stands, without the folders, and without the ending."""
    plain = text.replace("\\", "/").removeprefix("./")
    if not plain:
        return []
    forms = [plain, plain.rsplit("/", 1)[-1], "/".join(plain.rsplit("/", 2)[-2:])]
    stems = [form[: -len(ending)] for form in forms for ending in RASTER_ENDINGS if form.lower().endswith(ending)]
    return [*forms, *stems]


def _value(text: Description, pairs: Pairs, name: str, key: str) -> str:
    values = pairs.values(name)
    if key not in values:
        raise DataError(f"{text.path}: split refers to {key!r}; {nearest(key, values)}, the fields and columns")
    return values[key]


def _by_value(text: Description, pairs: Pairs) -> dict[str, set[str]]:
    key, owner = text.split["field"], {}
    for split in (split for split in SPLITS if split in text.split):
        chosen = text.split[split]
        for value in chosen if isinstance(chosen, list) else [chosen]:
            if owner.setdefault(str(value), split) != split:
                raise DataError(f"{text.path}: split.{split} has {value!r}, as split.{owner[str(value)]}; expected one")
    found = {name: _value(text, pairs, name, key) for name in pairs.names}
    for value, split in owner.items():
        if value not in found.values():
            present = sorted(set(found.values()))[:20]
            raise DataError(
                f"{text.path}: split.{split} has {value!r}, but no tile has this {key}; {nearest(value, present)}"
            )
    return {
        split: {name for name in found if owner.get(found[name]) == split} for split in dict.fromkeys(owner.values())
    }


def _drawn(groups: Mapping[Any, Sequence[Any]], split: dict[str, Any]) -> dict[str, set[Any]]:
    """Draws whole groups until each split has its share of the members; at least one group for each."""
    order = sorted(groups)
    order = [order[k] for k in np.random.default_rng(split.get("seed", 0)).permutation(len(order))]
    total, drawn, taken = sum(map(len, groups.values())), {}, 0
    for name in (name for name in ("test", "validation") if name in split):
        members: set[Any] = set()
        while taken < len(order) and (
            not members or len(members) < split[name] * total - len(groups[order[taken]]) / 2
        ):
            members |= set(groups[order[taken]])
            taken += 1
        drawn[name] = members
    drawn["train"] = {member for group in order[taken:] for member in groups[group]}
    for name, members in drawn.items():
        if not members:
            raise DataError(
                f"split.{name} has no tile: {len(groups)} group(s) or block(s) are too few to divide; expected smaller "
                "groups or blocks, or another split.by"
            )
    return drawn
