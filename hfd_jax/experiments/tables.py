"""Tables of a sweep as pandas frames, rendered as Markdown, LaTeX and CSV."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from hfd_jax.core.logs import duration
from hfd_jax.experiments.statistics import Line
from hfd_jax.experiments.sweep import Sweep, curve, point

LEVEL = 0.05  # of significance, for `verdict`


def score_table(lines: Sequence[Line], unit: str = "seed") -> pd.DataFrame:
    """The main table as text, one row per line; missing values are empty. `unit`: what a row has several of."""
    return pd.DataFrame(
        {
            "row": [line.row for line in lines],
            f"{unit}s": [str(line.seeds) for line in lines],
            "mIoU (95 % interval)": [_interval(f"{line.mean_iou:.3f}", line.half_width) for line in lines],
            "difference (95 % interval)": [
                "" if line.gain is None else _interval(f"{line.gain:+.3f}", line.gain_half_width) for line in lines
            ],
            "p (Holm)": [_p_value(line.corrected_p) for line in lines],
            "gap closed": ["" if line.closed is None else f"{line.closed:.0%}" for line in lines],
            "macro F1": [f"{line.macro_f1:.3f}" for line in lines],
            "parameters": [size(line.parameters) for line in lines],
            "training": ["" if line.seconds is None else duration(line.seconds) for line in lines],
            "Mpixel/s": ["" if line.megapixels is None else f"{line.megapixels:.2f}" for line in lines],
        }
    )


def curve_table(lines: Sequence[Line], sweep: Sweep) -> pd.DataFrame:
    """mIoU of a sweep over an axis as text: one row per point, one column per curve, then the differences."""
    columns: dict[str, dict[str, str]] = {}
    for line in lines:
        columns.setdefault(curve(line.row), {})[point(line.row)] = _interval(f"{line.mean_iou:.3f}", line.half_width)
    for line in lines:
        name = curve(line.row)
        if line.gain is not None and name != sweep.teacher:
            difference = _interval(f"{line.gain:+.3f}", line.gain_half_width)
            columns.setdefault(f"{name} - {sweep.reference}", {})[point(line.row)] = difference
    points = list(dict.fromkeys(at for column in columns.values() for at in column))
    cells = {name: [column.get(at, "") for at in points] for name, column in columns.items()}
    return pd.DataFrame({sweep.axis.split(".")[-1].replace("_", " "): points, **cells})


def class_table(lines: Sequence[Line]) -> pd.DataFrame:
    """IoU per class as text, one row per line; missing values are empty."""
    classes = pd.DataFrame([line.iou for line in lines]).map(lambda iou: "" if np.isnan(iou) else f"{iou:.3f}")
    classes.insert(0, "row", [line.row for line in lines], allow_duplicates=True)
    return classes


def verdict(lines: Sequence[Line], reference: str) -> str:
    """Says in words which rows differ from the reference at a level of 5 % after the correction; "" if none was tested.

    A row that is not found to differ is not thereby equal.
    """
    tested = [line for line in lines if line.corrected_p is not None and not np.isnan(line.corrected_p)]
    found = {
        "Above": [line.row for line in tested if line.corrected_p < LEVEL and line.gain > 0],
        "Below": [line.row for line in tested if line.corrected_p < LEVEL and line.gain < 0],
        "No difference found": [line.row for line in tested if line.corrected_p >= LEVEL],
    }
    parts = [f"{words}: {', '.join(rows)}." for words, rows in found.items() if rows]
    start = f"Compared with {reference} (paired t tests, Holm's correction over {len(tested)} rows, level {LEVEL:g}). "
    return start + " ".join(parts) if parts else ""


def markdown(table: pd.DataFrame) -> str:
    """A pipe table: first column left-aligned, the others right-aligned."""
    # Cells are text already: without disable_numparse, tabulate would reformat "0.700" as 0.7.
    return table.to_markdown(index=False, disable_numparse=True, colalign=_alignment(table, "left", "right"))


def latex(table: pd.DataFrame) -> str:
    """A tabular environment for the booktabs package."""
    special = str.maketrans({"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "±": r"$\pm$", "<": "$<$", "$": r"\$"})
    escaped = table.map(lambda cell: cell.translate(special)).set_axis(
        [name.translate(special) for name in table.columns], axis=1
    )
    return escaped.style.hide(axis="index").to_latex(hrules=True, column_format="".join(_alignment(table, "l", "r")))


def comma_separated(lines: Sequence[Line]) -> str:
    """All statistics unrounded, with one column per class ("iou NAME")."""
    table = pd.DataFrame([dataclasses.asdict(line) for line in lines]).drop(columns="iou")
    classes = pd.DataFrame([line.iou for line in lines]).add_prefix("iou ")
    return pd.concat([table, classes], axis=1).to_csv(index=False, lineterminator="\n")


def size(parameters: int) -> str:
    """A number of parameters as text: "786 k" or "2.50 M"."""
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e6 else f"{parameters / 1e3:.0f} k"


def _interval(mean: str, half_width: float | None) -> str:
    return mean if half_width is None or np.isnan(half_width) else f"{mean} ± {half_width:.3f}"


def _p_value(p: float | None) -> str:
    if p is None or np.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _alignment(table: pd.DataFrame, first: str, others: str) -> list[str]:
    return [first] + [others] * (table.shape[1] - 1)
