"""Distillation methods, each alone with its default weight and as its authors use it, and combinations with HFD.

Default weights are published ones in this project's normalisation (those of FitNet, IFVD, logit KD and SKD by Yang et
al. 2022, arXiv 2204.06986); those of HFD, NFD and FAKD are this project's own. Most authors add their loss to pixel-
wise distillation (kd), MGD to cwd; AICSD comes with a weighting that moves from distillation to the labels, for which
warm-up and the limit of distillation's share are off.

tools/env python -m tools.compare --sweep=configs/sweeps/distillation_methods.py --workdir=runs/compare --seeds=3
"""

CONFIG = "configs/scenes.py"
REFERENCE = "HFD"
FLOOR = "SAR-only student"
ALONE = {
    "HFD": {},
    "logit KD": {"distill.method": ("kd",)},
    "FitNet": {"distill.method": ("fitnet",)},
    "attention transfer": {"distill.method": ("attention",)},
    "CWD": {"distill.method": ("cwd",)},
    "SKD (pairwise)": {"distill.method": ("skd",)},
    "IFVD": {"distill.method": ("ifvd",)},
    "NFD": {"distill.method": ("nfd",)},
    "CIRKD": {"distill.method": ("cirkd",)},
    "AICSD": {"distill.method": ("aicsd",)},
    "MGD": {"distill.method": ("mgd",)},
    "FAKD": {"distill.method": ("fakd",)},
    "DisOptNet": {"distill.method": ("disoptnet",)},
}
PUBLISHED = {
    "FitNet + logit KD": {"distill.method": ("fitnet", "kd")},
    "attention transfer + logit KD": {"distill.method": ("attention", "kd")},
    "SKD + logit KD": {"distill.method": ("skd", "kd")},
    "IFVD + logit KD": {"distill.method": ("ifvd", "kd")},
    "CIRKD + logit KD": {"distill.method": ("cirkd", "kd")},
    "AICSD + logit KD, adaptive": {
        "distill.method": ("aicsd", "kd"),
        "distill.kd.adaptive": True,
        "distill.kd.weight": 0.48,
        "distill.warmup": 0.0,
        "distill.max_share": 1.0,
    },
    "MGD + CWD": {"distill.method": ("mgd", "cwd")},
}
WITH_HFD = {
    "HFD + logit KD": {"distill.method": ("hfd", "kd")},
    "HFD + CWD": {"distill.method": ("hfd", "cwd")},
    "HFD + FitNet": {"distill.method": ("hfd", "fitnet")},
}
METHODS = {**ALONE, **PUBLISHED, **WITH_HFD}
ROWS = {"teacher (EO)": {"stage": "teacher"}, FLOOR: {"distill.method": ()}, **METHODS}
