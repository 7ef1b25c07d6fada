"""The suite's results as one Markdown page."""

from collections.abc import Sequence
from typing import Any

from hfd_jax.core.logs import duration

# What the project aims at on a data centre GPU: (name, smallest or largest value, whether it is a lower limit).
GOALS = {
    "student step, PyTorch compiled / JAX": (1.3, True),
    "student step, share of the matrix product": (0.45, True),
    "student step / SAR-only step": (1.15, False),
}


def page(document: dict[str, Any]) -> str:
    """Formats the results; parts that are missing, skipped or failed are named."""
    parts = document["parts"]
    lines = ["# Accelerator suite", ""]
    for title, section in SECTIONS.items():
        name, write = section
        part = parts.get(name)
        lines += [f"## {title}", ""]
        if part is None:
            lines += ["Not run yet.", ""]
            continue
        if part["state"] == "skipped":
            lines += [f"Skipped: {part['skipped']}.", ""]
        if part["state"] == "failed":
            lines += [f"**Failed**: {part['failed']}", ""]
        if part["state"] == "done" or part.get("rows"):
            lines += [*write(part, parts), ""]
        lines += [f"- **{what}**: {error}" for what, error in part.get("errors", {}).items()]
        lines += [f"Took {duration(part['seconds'])}.", ""]
    lines += ["## Sizes", "", *(f"- {name}: {value}" for name, value in document["settings"].items()), ""]
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def gib(count: float | None) -> str:
    return "not stated" if count is None else f"{count / 2**30:.2f} GiB"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _device(part: dict, parts: dict) -> list[str]:
    peaks = [
        f"- {dtype}: matrix product {peak['flops'] / 1e12:.3g} TFLOP/s, copy {peak['bandwidth'] / 1e9:.3g} GB/s"
        for dtype, peak in part["peaks"].items()
    ]
    about = f"{part['device']} ({part['backend']}), jax {part['jax']}, memory {gib(part['memory'])}"
    return [about, "", "Measured peaks:", "", *peaks]


def _reference(part: dict, parts: dict) -> list[str]:
    return ["Computed on the CPU in float32 and bfloat16."]


def _numbers(part: dict, parts: dict) -> list[str]:
    rows = [
        [
            row["step"],
            row["dtype"],
            row["of"],
            f"{row['error']:.1e}",
            f"{row['allowed']:.1e}",
            "yes" if row["error"] <= row["allowed"] else "**no**",
        ]
        for row in part["rows"]
    ]
    note = "Relative errors of one update against the CPU in float32; tools/bench/suite/numbers.py gives the reasons."
    return [note, "", *table(["step", "dtype", "of", "error", "allowed", "within"], rows)]


def _speed(part: dict, parts: dict) -> list[str]:
    rows = [
        [
            row["step"],
            str(part["batch"]),
            f"{row['seconds'] * 1e3:.1f}",
            "-".join(f"{value * 1e3:.1f}" for value in row["quartiles"]),
            f"{row['pairs_per_second']:.1f}",
            f"{row['flops'] / 1e12:.3g}",
            share(row.get("share_of_matmul")),
            share(row.get("share_of_bandwidth")),
            gib(row["planned_memory"]),
        ]
        for row in part["rows"]
    ]
    header = ["step", "batch", "ms", "quartiles", "pairs/s", "TFLOP", "of matrix product", "of copy", "planned memory"]
    memory = f"Peak memory after the student's step: {gib(part['student_peak_memory'])}."
    return [*table(header, rows), "", memory, "", *_goals(parts)]


def _goals(parts: dict) -> list[str]:
    found = ratios(parts)
    rows = []
    for name, (limit, lower) in GOALS.items():
        if name in found:
            reached = found[name] >= limit if lower else found[name] <= limit
            rows.append([name, f"{found[name]:.2f}", f"{'>=' if lower else '<='} {limit}", "yes" if reached else "no"])
    return table(["ratio", "measured", "goal on a data centre GPU", "reached"], rows) if rows else []


def ratios(parts: dict) -> dict[str, float]:
    """The ratios that have goals, as far as their parts are finished; times are per pair."""
    own = {row["step"]: row for row in parts.get("speed", {}).get("rows", [])}
    peer = {(row["step"], row["flavour"]): row for row in parts.get("peer", {}).get("rows", [])}
    found, student = {}, own.get("student_step")
    if not student:
        return found
    compiled = peer.get(("student_step", "torch compile bf16"))
    if compiled:
        found["student step, PyTorch compiled / JAX"] = student["pairs_per_second"] / compiled["pairs_per_second"]
    if "share_of_matmul" in student:
        found["student step, share of the matrix product"] = student["share_of_matmul"]
    if "sar_step" in own:
        found["student step / SAR-only step"] = student["seconds"] / own["sar_step"]["seconds"]
    return found


def _peer(part: dict, parts: dict) -> list[str]:
    own = {row["step"]: row for row in parts.get("speed", {}).get("rows", [])}
    rows = []
    for row in part["rows"]:
        ratio = own[row["step"]]["pairs_per_second"] / row["pairs_per_second"] if row["step"] in own else None
        cells = [row["step"], row["flavour"], str(row["batch"]), f"{row['seconds'] * 1e3:.1f}"]
        rows.append([*cells, f"{row['pairs_per_second']:.1f}", f"{ratio:.2f}" if ratio else "-"])
    header = ["step", "flavour", "batch", "ms", "pairs/s", "JAX faster by"]
    return [f"PyTorch {part['torch']}, channels_last.", "", *table(header, rows)]


def _training(part: dict, parts: dict) -> list[str]:
    rows = [
        [
            row["network"],
            f"{row['mean_iou']:.3f}",
            f"{row['accuracy']:.3f}",
            f"{row['steps']} of {row['of']}",
            f"{row['seconds']:.1f}",
            str(row["skipped"]),
        ]
        for row in part["rows"]
    ]
    about = (
        f"{part['scenes']} simulated scenes, {part['labelled']} of them labelled, {part['held_out']} held out; "
        f"{part['batch']} labelled pairs per step; simulated in {part['simulation_seconds']:.0f} s. One seed."
    )
    return [about, "", *table(["network", "mIoU", "accuracy", "steps", "seconds", "skipped"], rows)]


SECTIONS = {
    "Device": ("device", _device),
    "Reference": ("reference", _reference),
    "Numbers": ("numbers", _numbers),
    "Speed": ("speed", _speed),
    "PyTorch": ("peer", _peer),
    "Training": ("training", _training),
}
