"""dataset.json as objects: `read_description` checks every key and reports all faults at once (docs/data.md)."""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

from hfd_jax.core.errors import nearest
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data.described.patterns import check_pattern, fields_of
from hfd_jax.data.described.schema import (
    Faults,
    Field,
    check_object,
    choice,
    is_colour,
    is_list,
    is_number,
    is_text,
    is_whole,
    read_json,
)
from hfd_jax.data.facts import LOOK_AXES, SAR_UNITS, SPLITS
from hfd_jax.data.longitudes import overlap

TAG = "tag"  # nodata: the raster's own tag
RESAMPLING = ("nearest", "bilinear", "cubic", "average", "mode")
VECTOR_ENDINGS = (".gpkg", ".geojson", ".json", ".shp", ".fgb")
KINDS = ("sar", "eo", "label")


@dataclasses.dataclass(frozen=True)
class Sensor:
    """Files and bands of one sensor.

    Attributes:
      files: patterns; the bands of a tile's files are stacked in this order.
      bands: names of the bands that are stored.
      band_numbers: which of the stacked bands these are, from 1; () for all.
      nodata: value of a pixel without data in all bands; None for no such value; TAG for the raster's own tag.
      resample: how files on another grid are resampled onto that of the first SAR file; "" refuses them.
      unit: of SAR.
      offset: added to every valid value; tile name -> value, or one value.
    """

    files: tuple[str, ...]
    bands: tuple[str, ...]
    band_numbers: tuple[int, ...] = ()
    nodata: float | str | None = TAG
    resample: str = ""
    unit: str = ""
    offset: float | dict[str, float] = 0


@dataclasses.dataclass(frozen=True)
class Classes:
    """Labels: files, and what their values mean.

    Attributes:
      files: pattern of the label files, in a tuple; () if no tile has a label.
      names, colours: per class; a colour may be None.
      codes: per class, the codes (or colours) that stand for it.
      ignore: codes (or colours) that count as unlabelled.
      by_colour: whether codes are colours of an RGB or paletted raster.
      band_number: the band of codes, from 1; 0 for the only one.
      nodata: as of `Sensor`; such pixels count as unlabelled.
      resample: as of `Sensor`.
      column, layer: of a vector file: the column with the codes, which may be text, and the layer if it has several.
      outside: name of the class outside all polygons of a vector file; "" for unlabelled.
      missing: "unlabelled" if a training tile without label file is an unlabelled pair, "refuse" if it is an error.
    """

    files: tuple[str, ...]
    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int] | None, ...]
    codes: tuple[tuple[Any, ...], ...]
    ignore: tuple[Any, ...] = ()
    by_colour: bool = False
    band_number: int = 0
    nodata: float | str | None = TAG
    resample: str = ""
    missing: str = "unlabelled"
    column: str = ""
    layer: str = ""
    outside: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with a row per tile.

    Attributes:
      file: CSV or Parquet, below the raw folder or beside the description.
      id: its column with the names of the tiles.
    """

    file: str
    id: str


@dataclasses.dataclass(frozen=True)
class Description:
    """A checked dataset.json; `text` is the file as read, `path` its path, `split` the checked object of that name."""

    path: str
    text: dict[str, Any]
    name: str
    sar: Sensor
    eo: Sensor
    label: Classes
    look_axis: str
    split: dict[str, Any]
    table: Table | None
    block: int


_NUMBER_OR_NULL = Field("a number, or null for none", lambda v: v is None or is_number(v))
_FILES = Field("a pattern such as 'sar/{id}.tif', or a list of them", lambda v: is_text(v) or is_list(is_text, 1)(v))
_FOLDER = Field("the name of a folder", is_text)
_BANDS = Field("a list of band names, such as ['VV', 'VH']", is_list(is_text, 1), required=True)
_BAND_NUMBERS = Field("a list of band numbers from 1", is_list(lambda v: is_whole(v) and v > 0, 1))
_SENSOR = {
    "files": _FILES,
    "folder": _FOLDER,
    "bands": _BANDS,
    "band_numbers": _BAND_NUMBERS,
    "nodata": _NUMBER_OR_NULL,
    "resample": choice(*RESAMPLING[:-1]),
}
_TOP = {
    "name": Field(
        "letters, digits, '_', '-' and '.', first a letter or digit",
        lambda v: isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", v) is not None,
        required=True,
    ),
    "sar": Field("an object", lambda v: True, required=True),
    "eo": Field("an object", lambda v: True, required=True),
    "label": Field("an object", lambda v: True, required=True),
    "look_axis": choice(*LOOK_AXES, required=True),
    "split": Field("an object", lambda v: True, required=True),
    "table": Field("an object", lambda v: True),
    "block": Field("an integer, 32 to 4096 pixels", lambda v: is_whole(v) and 32 <= v <= 4096),
}
_SAR = _SENSOR | {"unit": choice(*SAR_UNITS, required=True)}
_EO = _SENSOR | {
    "offset": Field(
        "a number, or an object of numbers per tile",
        lambda v: is_number(v) or (isinstance(v, dict) and all(map(is_number, v.values()))),
    )
}
_LABEL = {
    "files": Field("a pattern such as 'label/{id}.tif', or null for none", lambda v: v is None or is_text(v)),
    "folder": _FOLDER,
    "by": choice("code", "colour"),
    "classes": Field("a list of classes, each with code and name", is_list(lambda v: True), required=True),
    "ignore": Field("a list of codes", lambda v: isinstance(v, list)),
    "band_number": Field("a band number from 1", lambda v: is_whole(v) and v > 0),
    "nodata": _NUMBER_OR_NULL,
    "resample": choice("nearest", "mode"),
    "missing": choice("unlabelled", "refuse"),
    "column": Field("the name of a column of the vector file", is_text),
    "layer": Field("the name of a layer of the vector file", is_text),
    "outside": Field("the name of a class", is_text),
}
_TABLE = {"file": Field("the path of a table", is_text, True), "id": Field("the name of a column", is_text, True)}

_RANGE = Field("a pair of numbers [start, stop]", lambda v: is_list(is_number)(v) and len(v) == 2 and v[0] < v[1])
_PART = Field("[start, stop] within 0 to 1", lambda v: is_list(is_number)(v) and len(v) == 2 and 0 <= v[0] < v[1] <= 1)
_LIST = Field("the name of a file, or a list of them", lambda v: is_text(v) or is_list(is_text, 1)(v))
_VALUE = Field(
    "a value, or a list of values",
    lambda v: isinstance(v, str) or is_whole(v) or is_list(lambda m: isinstance(m, str) or is_whole(m), 1)(v),
)
_SHARE = Field("a share, more than 0 and less than 1", lambda v: is_number(v) and 0 < v < 1)
_SEED = Field("an integer, 0 or more", lambda v: is_whole(v) and v >= 0)
_FIELD = Field("the name of a field of sar.files or of a column of the table", is_text)


def _parts(field: Field, unlabelled: bool = False) -> dict[str, Field]:
    required = dataclasses.replace(field, required=True)
    more = {"unlabelled": field} if unlabelled else {}
    return {"train": required, "validation": field, "test": required, **more}


_DRAWN = {"seed": _SEED, "validation": _SHARE, "test": dataclasses.replace(_SHARE, required=True)}
_SPLITS = {
    "list": _parts(_LIST, unlabelled=True),
    "field": {"field": dataclasses.replace(_FIELD, required=True), **_parts(_VALUE, unlabelled=True)},
    "fold": {"field": dataclasses.replace(_FIELD, required=True), "validation": _VALUE},
    "longitude": _parts(_RANGE),
    "columns": _parts(_PART),
    "random": {**_DRAWN, "groups": _FIELD},
    "blocks": {
        **_DRAWN,
        "size": Field("the edge of a block, metres", lambda v: is_number(v) and v > 0, True),
        "margin": Field("metres, 0 or more", lambda v: is_number(v) and v >= 0),
    },
    "unlabelled": {},
}


def read_description(path: str) -> Description:
    """Reads and checks a description.

    Raises:
      DataError: the file is missing or not JSON, or has faults; the message lists all of them.
    """
    text, faults = read_json(path), Faults(path)
    top = check_object(faults, "", text, _TOP)
    given = {kind: check_object(faults, kind, top.get(kind, {}), fields) for kind, fields in
             (("sar", _SAR), ("eo", _EO), ("label", _LABEL)) if kind in top}  # fmt: skip
    sensors = {kind: _sensor(faults, kind, given.get(kind, {})) for kind in ("sar", "eo")}
    label = _classes(faults, given.get("label", {}))
    table = check_object(faults, "table", top["table"], _TABLE) if "table" in top else None
    split = _split(faults, top["split"]) if "split" in top else {}
    if table is None:
        _check_fields(faults, sensors, label, split)
    faults.raise_any()
    return Description(
        path, text, top["name"], sensors["sar"], sensors["eo"], label, top["look_axis"], split,
        Table(**table) if table else None, top.get("block", 1024),
    )  # fmt: skip


def _patterns(faults: Faults, kind: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    if "files" in given and "folder" in given:
        faults.say(f"{kind}.files and {kind}.folder are both given; expected one of them")
    files = given.get("files", f"{given.get('folder', kind)}/{{id}}.tif")
    patterns = () if files is None else (files,) if isinstance(files, str) else tuple(files)
    for pattern in patterns:
        if problem := check_pattern(pattern):
            faults.add(f"{kind}.files", pattern, problem)
    return patterns


def _sensor(faults: Faults, kind: str, given: dict[str, Any]) -> Sensor:
    bands, numbers = tuple(given.get("bands", ())), tuple(given.get("band_numbers", ()))
    if doubled := _doubled(bands):
        faults.say(f"{kind}.bands names {doubled!r} twice; expected different names")
    if numbers and bands and len(numbers) != len(bands):
        faults.add(f"{kind}.band_numbers", list(numbers), f"expected one for each of the {len(bands)} bands")
    kept = {key: given[key] for key in ("nodata", "resample", "unit", "offset") if key in given}
    return Sensor(_patterns(faults, kind, given), bands, numbers, **kept)


def _classes(faults: Faults, given: dict[str, Any]) -> Classes:
    by_colour, entries = given.get("by") == "colour", given.get("classes", [])
    vector = "column" in given
    what = "a colour [r, g, b]" if by_colour else "text or an integer" if vector else "an integer"
    is_code = is_colour if by_colour else (lambda v: is_text(v) or is_whole(v)) if vector else is_whole
    names, colours, codes = [], [], []
    for number, entry in enumerate(entries):
        where = f"label.classes[{number}]"
        if not isinstance(entry, dict) or not {"colour" if by_colour else "code", "name"} <= set(entry):
            faults.add(where, entry, f"expected a {'colour' if by_colour else 'code'} and a name")
            continue
        fields = {
            "code": Field(
                f"{what}, or a list of them", lambda v: is_code(v) or (isinstance(v, list) and is_list(is_code, 1)(v))
            ),
            "name": Field("text", is_text),
            "colour": Field("[r, g, b], integers of 0 to 255", is_colour),
        }
        found = check_object(faults, where, entry, fields)
        own = found.get("code", found.get("colour") if by_colour else None)
        codes.append(() if own is None else (own,) if is_code(own) else tuple(own))
        names.append(found.get("name", ""))
        colours.append(tuple(found["colour"]) if "colour" in found else None)
    ignore = given.get("ignore", [])
    for code in ignore:
        if not is_code(code):
            faults.say(f"label.ignore has {code!r}; expected {what}")
    if "classes" in given and len(entries) < 2:
        faults.say(f"label.classes needs at least two classes with different codes; it has {len(entries)}")
    _check_codes(faults, entries, names, codes, ignore)
    codes = [tuple(tuple(c) if by_colour else c for c in own) for own in codes]
    ignore = [tuple(c) if by_colour and isinstance(c, list) else c for c in ignore]
    patterns = _patterns(faults, "label", given)
    is_vector = any(pattern.lower().endswith(VECTOR_ENDINGS) for pattern in patterns)
    if is_vector != vector:
        faults.say(
            "label.column is missing; expected the column with the classes, since label.files is a vector file"
            if is_vector
            else f"label.column is for vector files; expected label.files to end in {', '.join(VECTOR_ENDINGS)}"
        )
    if "outside" in given and given["outside"] not in names:
        faults.add("label.outside", given.get("outside"), nearest(given.get("outside"), names))
    missing = given.get("missing", "refuse" if "files" in given else "unlabelled")
    if by_colour and given.get("resample") == "mode":
        faults.say("label.resample is 'mode'; expected nearest, since label.by is 'colour'")
    return Classes(
        patterns, tuple(names), tuple(colours), tuple(codes), tuple(ignore), by_colour,
        given.get("band_number", 0), given.get("nodata", TAG), given.get("resample", ""), missing,
        given.get("column", ""), given.get("layer", ""), given.get("outside", ""),
    )  # fmt: skip


def _check_codes(faults: Faults, entries: list[Any], names: list[str], codes: list[Any], ignore: list[Any]) -> None:
    if len(entries) > IGNORE_LABEL:
        faults.say(
            f"label.classes has {len(entries)} classes; expected at most {IGNORE_LABEL}, since the stored value "
            f"{IGNORE_LABEL} means unlabelled"
        )
    if doubled := _doubled([name for name in names if name]):
        faults.say(f"label.classes has two classes of the name {doubled!r}; expected different names")
    flat = [str(code) for own in codes for code in own]
    if doubled := _doubled(flat):
        faults.say(f"label.classes has the code {doubled} twice; expected at least two classes with different codes")
    for code in ignore:
        if str(code) in flat:
            faults.say(f"label code {code} is both a class and ignored; expected one of them")


def _split(faults: Faults, given: Any) -> dict[str, Any]:
    by = given.get("by") if isinstance(given, dict) else None
    fields = {"by": choice(*_SPLITS, required=True)}
    if isinstance(by, str) and by in _SPLITS:
        fields |= {
            key: dataclasses.replace(field, expected=f"{field.expected}, since split.by is {by!r}")
            for key, field in _SPLITS[by].items()
        }
    elif isinstance(given, dict):  # the other keys depend on a valid split.by
        given = {"by": by} if "by" in given else {}
    split = check_object(faults, "split", given, fields)
    if by in ("longitude", "columns"):
        shared = overlap if by == "longitude" else lambda one, other: one[0] < other[1] and other[0] < one[1]
        ranges = [(key, split[key]) for key in SPLITS if key in split]
        for (one, first), (other, second) in itertools.combinations(ranges, 2):
            if shared(first, second):
                faults.say(f"split.{one} and split.{other} overlap; splits must not share ground")
    if by in ("random", "blocks") and sum(split.get(key, 0) for key in ("validation", "test")) >= 1:
        faults.say("split.validation and split.test add up to 1 or more; expected a rest for training")
    return split


def _check_fields(faults: Faults, sensors: Mapping[str, Sensor], label: Classes, split: dict[str, Any]) -> None:
    """Without a table, tiles are named by the fields of the SAR pattern."""
    if not sensors["sar"].files:
        return
    known = fields_of(sensors["sar"].files[0])
    for kind, files in (("sar", sensors["sar"].files[1:]), ("eo", sensors["eo"].files), ("label", label.files)):
        for pattern in files:
            if more := [field for field in fields_of(pattern) if field not in known]:
                faults.say(
                    f"{kind}.files has the field {{{more[0]}}} in {pattern!r}, which sar.files lacks; "
                    "expected fields of sar.files, or a table with these columns"
                )
    for key in ("field", "groups"):
        if key in split and split[key] not in known:
            faults.add(f"split.{key}", split[key], f"{nearest(split[key], known)}, the fields of sar.files, or a table")


def _doubled(values: Any) -> Any:
    return next((value for k, value in enumerate(values) if value in values[:k]), None)
