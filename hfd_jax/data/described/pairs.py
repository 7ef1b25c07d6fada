"""Which files make a tile: the patterns of the sensors and of the labels, joined by their fields or by a table."""

import contextlib
import os
from collections.abc import Iterator

from hfd_jax.core.errors import DataError
from hfd_jax.data.described.description import KINDS, Description
from hfd_jax.data.described.patterns import Folders, Listing, filled, list_files
from hfd_jax.data.described.tables import locate, read_table


class Pairs:
    """The tiles of a raw folder, by name.

    A tile's name joins the fields of the SAR pattern with "_"; with a table it is the table's id. A pattern with fewer
    fields than the tile names a file that several tiles share.

    Args:
      description: of the data set.
      raw_dir: the raw folder.

    Attributes:
      names: of the tiles, sorted.
      notes: what belongs to no tile.

    Raises:
      DataError: a pattern matches nothing, label files match no tile while tiles lack labels, or fields are unknown.
    """

    def __init__(self, description: Description, raw_dir: str):
        self._description, self._root = description, raw_dir
        self.notes: list[str] = []
        with contextlib.closing(Folders(raw_dir)) as folders:
            self._listings = {
                kind: [list_files(folders, pattern) for pattern in getattr(description, kind).files] for kind in KINDS
            }
            self._check_found(folders)
            self._values = self._joined()
            self.names = sorted(self._values)
            self._check_unmatched(folders)

    def values(self, name: str) -> dict[str, str]:
        """Fields and table columns of a tile."""
        return self._values[name]

    def paths(self, kind: str, name: str) -> list[str]:
        """Paths of the tile's files of "sar", "eo" or "label"; also of files that do not exist."""
        values = self._values[name]
        return [os.path.join(self._root, _path(listing, values)) for listing in self._listings[kind]]

    def has(self, kind: str, name: str) -> bool:
        """Whether all files of this kind exist."""
        values = self._values[name]
        listings = self._listings[kind]
        return bool(listings) and all(_key(listing, values) in listing.paths for listing in listings)

    def _check_found(self, folders: Folders) -> None:
        text = self._description
        for kind in KINDS:
            optional = kind == "label" and text.label.missing == "unlabelled"
            for listing in self._listings[kind]:
                if listing.paths:
                    continue
                present = min(folders.rasters(listing.searched), default="")
                if optional and not present:
                    continue
                example = f"; there is, for example, {present}" if present else ""
                where = os.path.join(self._root, listing.pattern)
                raise DataError(f"{where}: no such file; {kind}.files of {text.path} matches nothing{example}")

    def _joined(self) -> dict[str, dict[str, str]]:
        if self._description.table:
            return self._joined_by_table()
        first = self._listings["sar"][0]
        found: dict[str, dict[str, str]] = {}
        for kind in ("sar", "eo"):
            for listing in self._listings[kind]:
                if set(listing.fields) != set(first.fields):
                    continue
                for key, path in listing.paths.items():
                    values = dict(zip(listing.fields, key, strict=True))
                    name = "_".join(values[field] for field in first.fields) or _stem(first.paths.get((), path))
                    if found.setdefault(name, values) != values:
                        raise DataError(
                            f"{os.path.join(self._root, path)}: the tile name {name!r} is not "
                            f"unique; joined by '_', the fields of {first.pattern} must identify a tile"
                        )
        return found

    def _joined_by_table(self) -> dict[str, dict[str, str]]:
        table = self._description.table
        path = locate(table.file, self._description.path, self._root, "the table")
        rows = read_table(path, table.id)
        columns = next(iter(rows.values()), {})
        for kind, listing in self._each():
            if missing := [field for field in listing.fields if field not in columns and field != "id"]:
                raise DataError(
                    f"{path}: has no column {missing[0]!r}, a field of {kind}.files; its columns are "
                    f"{', '.join(columns)}, and {{id}} is {table.id}"
                )
        found = {name: {"id": name} | row | {"id": name} for name, row in rows.items()}
        empty = [name for name, values in found.items() if not any(_key(s, values) in s.paths for _, s in self._each())]
        if len(empty) == len(found):
            raise DataError(
                f"{path}: no row has any of its files; expected, for the first row, "
                f"{self._expected(next(iter(found.values()), {'id': '?'}))}"
            )
        if empty:
            self.notes.append(f"{len(empty)} row(s) of {path} have no file, for example {empty[0]}")
        return {name: values for name, values in found.items() if name not in set(empty)}

    def _expected(self, values: dict[str, str]) -> str:
        return filled(self._listings["sar"][0].pattern, values)

    def _each(self) -> Iterator[tuple[str, Listing]]:
        return ((kind, listing) for kind in KINDS for listing in self._listings[kind])

    def _check_unmatched(self, folders: Folders) -> None:
        """Names files that no tile uses."""
        matched: set[str] = set()
        for kind, listing in self._each():
            used = {_key(listing, values) for values in self._values.values()}
            stray = sorted(path for key, path in listing.paths.items() if key not in used)
            matched.update(listing.paths.values())
            if not stray:
                continue
            lacking = [name for name in self.names if not self.has(kind, name)] if kind == "label" else []
            if lacking:
                raise DataError(
                    f"{os.path.join(self._root, stray[0])}: matches no tile, as {len(stray)} label file(s), while "
                    f"{len(lacking)} tile(s) lack a label, for example {lacking[0]}; expected the tiles' names"
                )
            self.notes.append(f"{len(stray)} {kind} file(s) match no tile, for example {stray[0]}")
        searched = set().union(*(listing.searched for _, listing in self._each()))
        strange = sorted(path for path in folders.rasters(searched) if path not in matched)
        if strange:
            self.notes.append(f"{len(strange)} raster file(s) match no pattern, for example {strange[0]}")


def _key(listing: Listing, values: dict[str, str]) -> tuple[str, ...]:
    return tuple(values[field] for field in listing.fields)


def _path(listing: Listing, values: dict[str, str]) -> str:
    return listing.paths.get(_key(listing, values)) or filled(listing.pattern, values)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
