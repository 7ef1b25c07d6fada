"""Ways to distil, each alone and with its published weight in this project's normalisation, HFD in combination, and
methods again with the weight that the validation split prefers.

tools/env python -m tools.compare --sweep=configs/sweeps/distillation_methods.py --workdir=runs/compare --seeds=3
"""

CONFIG = "configs/quickstart.py"
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
# Of a fifth, once and five times the published weight, what the validation split prefers by 0.005 of mIoU and more
# (tuning_methods.py).
TUNED = {
    "logit KD": ("kd", 5.0),
    "attention transfer": ("attention", 6.0),
    "SKD (pairwise)": ("skd", 50.0),
    "CIRKD": ("cirkd", 5.0),
    "MGD": ("mgd", 33.6),
    "FAKD": ("fakd", 0.2),
}
ROWS = {
    "teacher (EO)": {"stage": "teacher"},
    FLOOR: {"distill.method": ()},
    **{row: {"distill.method": methods} for row, methods in METHODS.items()},
    **{
        f"{row}, weight {weight:g}": {"distill.method": (method,), f"distill.{method}.weight": weight}
        for row, (method, weight) in TUNED.items()
    },
    "HFD, A counts four times": {"distill.hfd.weight": 17.5, "distill.hfd.tap_weights": (1, 1, 1, 4)},
}
