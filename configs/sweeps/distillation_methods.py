"""Distillation methods, each alone with its default weight, and combinations with HFD.

Default weights are the published ones in this project's normalisation; those of HFD, NFD, AICSD and FAKD are this
project's own.

tools/env python -m tools.compare --sweep=configs/sweeps/distillation_methods.py --workdir=runs/compare --seeds=3
"""

CONFIG = "configs/scenes.py"
REFERENCE = "HFD"
FLOOR = "SAR-only student"
METHODS = {
    "logit KD": ("kd",),
    "FitNet": ("fitnet",),
    "attention transfer": ("attention",),
    "CWD": ("cwd",),
    "SKD (pairwise)": ("skd",),
    "IFVD": ("ifvd",),
    "NFD": ("nfd",),
    "CIRKD": ("cirkd",),
    "AICSD": ("aicsd",),
    "MGD": ("mgd",),
    "FAKD": ("fakd",),
    "DisOptNet": ("disoptnet",),
    "HFD": ("hfd",),
    "HFD + logit KD": ("hfd", "kd"),
    "HFD + CWD": ("hfd", "cwd"),
    "HFD + FitNet": ("hfd", "fitnet"),
}
ROWS = {
    "teacher (EO)": {"stage": "teacher"},
    FLOOR: {"distill.method": ()},
    **{row: {"distill.method": methods} for row, methods in METHODS.items()},
}
