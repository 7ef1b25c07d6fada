"""Tables and lists that come with a data set: CSV, Parquet and text files."""

import csv
import os
import unicodedata

import pandas as pd

from hfd_jax.core.errors import DataError, nearest


def locate(file: str, description: str, raw_dir: str, what: str) -> str:
    """Path of a file that a description names, beside the description or below the raw folder.

    Raises:
      DataError: the file is in neither place; `what` says which key refers to it.
    """
    places = [os.path.join(os.path.dirname(description), file), os.path.join(raw_dir, file)]
    for path in places:
        if os.path.isfile(path):
            return path
    where = " or ".join(dict.fromkeys(places))
    raise DataError(f"{where}: missing; {description} refers to it as {what}")


def read_table(path: str, id_column: str) -> dict[str, dict[str, str]]:
    """Rows of a table, by the value in `id_column`; all values are text.

    Raises:
      DataError: the file cannot be read, has no such column, or an id appears in two rows.
    """
    try:
        if path.lower().endswith(".parquet"):
            frame = pd.read_parquet(path).astype(str)
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", sep=None, engine="python")
    except Exception as error:  # pandas and Arrow have many
        raise DataError(f"{path}: cannot be read as a table ({error})") from error
    frame.columns = [str(column).strip() for column in frame.columns]
    if id_column not in frame.columns:
        raise DataError(f"{path}: has no column {id_column!r}; {nearest(id_column, frame.columns)}")
    ids = [_plain(value) for value in frame[id_column]]
    doubled = frame[id_column][frame[id_column].duplicated()]
    if len(doubled):
        raise DataError(f"{path}: {id_column} {doubled.iloc[0]!r} appears in two rows; expected one row per tile")
    rows = (
        {key: _plain(value) for key, value in row.items()} for row in frame.fillna("").astype(str).to_dict("records")
    )
    return dict(zip(ids, rows, strict=True))


def read_lines(path: str) -> list[list[str]]:
    """The cells of every line that is not empty; a file that is no CSV has one cell in each line.

    Raises:
      DataError: the file cannot be read or is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    lines = text.splitlines()
    rows = list(csv.reader(lines)) if path.lower().endswith(".csv") else [[line] for line in lines]
    rows = [[_plain(cell) for cell in row] for row in rows]
    return [row for row in rows if any(row)]


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", str(text).strip())
