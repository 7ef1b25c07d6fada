"""Patterns of file names: S1Hand/{region}_{id}_S1Hand.tif matches files and gives the values of the fields.

A field in braces matches any part of a name but not "/". `*` matches any part of a name as well, `**` any folders. A
field that appears twice has the same value. The ending is compared without regard to case, and .tif matches .tiff, too.
"""

import contextlib
import dataclasses
import functools
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from tqdm import tqdm

from hfd_jax.core.errors import DataError

RASTER_ENDINGS = (".tif", ".tiff", ".png", ".jp2", ".jpg", ".jpeg", ".vrt", ".img", ".bmp", ".nc", ".dat")
_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")


def fields_of(pattern: str) -> tuple[str, ...]:
    """Names of the fields, in the order of their first use."""
    return tuple(dict.fromkeys(_FIELD.findall(pattern)))


def check_pattern(pattern: str) -> str:
    """Describes what is wrong with a pattern; "" if it is right."""
    rest = _FIELD.sub("", pattern)
    if "{" in rest or "}" in rest:
        return "expected fields such as {id}: letters, digits and '_' in braces"
    if os.path.isabs(pattern) or ".." in pattern.split("/"):
        return "expected a path below the raw folder"
    parts = pattern.split("/")
    if any("**" in part and part != "**" for part in parts) or parts[-1] in ("", "**"):
        return "expected ** as a whole folder, and a file name at the end"
    return ""


class Folders:
    """The contents of the folders below a raw folder, each read once; hidden files and folders are left out.

    Shows its progress until it is closed.
    """

    def __init__(self, root: str):
        self.root = root
        self._entries: dict[str, list[tuple[str, str, bool]]] = {}
        self._progress = tqdm(desc="listing", unit="folder", mininterval=1.0, delay=5, leave=False)

    def close(self) -> None:
        """Ends the display."""
        self._progress.close()

    def entries(self, folder: str) -> list[tuple[str, str, bool]]:
        """(name, path below the raw folder, whether it is a folder) of everything in a folder, sorted.

        Raises:
          DataError: the folder cannot be read.
        """
        if folder not in self._entries:
            try:
                with os.scandir(os.path.join(self.root, folder)) as entries:
                    found = [
                        (e.name, f"{folder}/{e.name}" if folder else e.name, e.is_dir())
                        for e in entries
                        if not e.name.startswith(".")
                    ]
            except (FileNotFoundError, NotADirectoryError):
                found = []
            except OSError as error:
                raise DataError(f"{os.path.join(self.root, folder)}: cannot be read ({error.strerror})") from error
            self._entries[folder] = sorted(found)
            self._progress.update()
        return self._entries[folder]

    def rasters(self, folders: Iterable[str]) -> Iterator[str]:
        """Paths below the raw folder of the rasters in some folders."""
        for folder in folders:
            for name, path, is_folder in self.entries(folder):
                if not is_folder and name.lower().endswith(RASTER_ENDINGS):
                    yield path


@dataclasses.dataclass
class Listing:
    """The files that a pattern matches.

    Attributes:
      pattern: as given.
      fields: names of its fields.
      paths: values of the fields -> path below the raw folder.
      searched: folders, as paths below the raw folder, that might hold matching files.
    """

    pattern: str
    fields: tuple[str, ...]
    paths: dict[tuple[str, ...], str]
    searched: set[str]


def list_files(folders: Folders, pattern: str) -> Listing:
    """Lists the files below a raw folder that match a pattern.

    Raises:
      DataError: two files have the same values of the fields, or a name is no valid text.
    """
    listing = Listing(pattern, fields_of(pattern), {}, set())
    for path, values in _walk(folders, "", pattern.split("/"), {}, listing.searched):
        # Interned: a large data set has a dozen files per tile, whose names share their fields.
        key = tuple(sys.intern(unicodedata.normalize("NFC", values[field])) for field in listing.fields)
        if listing.paths.get(key, path) != path:  # several ** may lead to the same file
            raise DataError(
                f"{os.path.join(folders.root, path)}: matches {pattern!r} with the same fields as "
                f"{listing.paths[key]}; expected one file for each tile"
            )
        listing.paths[key] = path
    return listing


def filled(pattern: str, values: dict[str, str]) -> str:
    """The pattern with its fields replaced; wildcards stay."""
    return _FIELD.sub(lambda match: values[match[1]], pattern)


def _walk(
    folders: Folders, folder: str, parts: list[str], values: dict[str, str], searched: set[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (path, values) of the matching files below a folder."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _walk(folders, folder, rest, values, searched)
        for _, path, is_folder in folders.entries(folder):
            if is_folder:
                yield from _walk(folders, path, parts, values, searched)
        return
    match = _matcher(part, tuple((field, values[field]) for field in fields_of(part) if field in values), not rest)
    if not rest:
        searched.add(folder)
    for name, path, is_folder in folders.entries(folder):
        if is_folder != bool(rest) or (found := match(name)) is None:
            continue
        if rest:
            yield from _walk(folders, path, rest, values | found, searched)
        else:
            _check_text(folders.root, path)
            yield path, values | found


@functools.lru_cache(maxsize=256)
def _matcher(part: str, known: tuple[tuple[str, str], ...], last: bool) -> Callable[[str], dict[str, str] | None]:
    """Returns a function from a name to the fields it adds, or None if it does not match one part of a pattern.

    Args:
      part: between two "/".
      known: values of its fields that folders above have set.
      last: whether it names files.
    """
    stem, ending = os.path.splitext(part) if last else (part, "")
    if "{" in ending or "*" in ending:
        stem, ending = part, ""
    endings = (".tif", ".tiff") if ending.lower() in (".tif", ".tiff") else (ending.lower(),)
    values = dict(known)
    if "*" not in stem and len(values) == len(fields_of(part)):
        # All fields are known. Compiling an expression per folder would take most of the time of a large data set.
        text = filled(stem, values)
        return lambda name: {} if name.startswith(text) and name[len(text) :].lower() in endings else None
    text = ""
    for piece in re.split(r"(\{\w+\}|\*)", stem):
        field = _FIELD.fullmatch(piece)
        if piece == "*":
            text += "[^/]*"
        elif field and field[1] in dict(known):
            text += re.escape(values[field[1]])
        elif field:
            text += f"(?P={field[1]})" if field[1] in values else f"(?P<{field[1]}>[^/]+?)"
            values[field[1]] = ""
        else:
            text += re.escape(piece)
    expression = re.compile(text + f"(?i:{'|'.join(map(re.escape, endings))})")

    def match(name: str) -> dict[str, str] | None:
        found = expression.fullmatch(name)
        return found.groupdict() if found else None

    return match


def _check_text(root: str, path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        with contextlib.suppress(UnicodeDecodeError):
            name = os.fsencode(path).decode()
            raise DataError(
                f"{os.path.join(root, name)}: the locale reads names as {sys.getfilesystemencoding()}, not UTF-8; set "
                "PYTHONUTF8=1 or LC_ALL=C.UTF-8"
            ) from error
        shown = os.path.join(root, path).encode(errors="surrogateescape").decode(errors="backslashreplace")
        raise DataError(f"{shown}: the name is not UTF-8; rename the file (convmv -f latin1 -t utf8 helps)") from error
