"""mIoU over the share of labelled pairs, with and without distillation on unlabelled pairs.

tools/env python -m tools.compare --sweep=configs/sweeps/label_efficiency.py --workdir=runs/compare --seeds=3

"HFD, labelled pairs alone" distils on labelled pairs only; "HFD, all pairs" also on unlabelled ones. Each share has its
own teacher, which is trained on the same labels as its students.
"""

CONFIG = "configs/scenes.py"
SHARES = {"1 %": 0.01, "5 %": 0.05, "10 %": 0.1, "25 %": 0.25, "100 %": 1.0}
AXIS = "data.label_share"
REFERENCE = "SAR-only"
CHOICES = {"better on validation": ("SAR-only", "HFD, all pairs")}
_CURVES = {
    "teacher (EO)": {"stage": "teacher"},
    "SAR-only": {"distill.method": ()},
    "HFD, labelled pairs alone": {"data.unlabelled_ratio": 0.0},
    "HFD, all pairs": {},
}
ROWS = {
    f"{curve} @ {share}": {**fields, "data.label_share": value}
    for share, value in SHARES.items()
    for curve, fields in _CURVES.items()
    if not (curve == "HFD, labelled pairs alone" and value == 1.0)  # all pairs are labelled
}
