"""Sweeps and results that no training made."""

from hfd_jax.experiments import sweep
from hfd_jax.experiments.statistics import Result


def some_sweep(rows, reference="SAR-only"):
    rows = {"SAR-only": {"distill.method": ()}, **rows}
    return sweep.Sweep("some", "configs/scenes.py", reference, rows, floor=reference)


def result(mean_iou, rates=(10.0,), validation=None):
    iou = {"land": mean_iou, "water": None}
    return Result(mean_iou, mean_iou + 0.1, 0.9, iou, 2_500_000, 600, rates, validation)
