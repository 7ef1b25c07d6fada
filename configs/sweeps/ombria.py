"""Real radar, the flood chips of OMBRIA with all and a tenth of the labels: HFD, its first form and its cheap rivals.

tools/env python -m tools.compare --sweep=configs/sweeps/ombria.py --workdir=runs/ombria --seeds=3 --at_once=2
tools/env python -m tools.compare --sweep=configs/sweeps/ombria.py --config=configs/ombria.py:0 \
    --workdir=runs/ombria_0 --seeds=3 --at_once=2

The second command tests on fold 0 of 4 (configs/ombria.py says how to prepare it): events differ more than seeds.
"""

CONFIG = "configs/ombria.py"
REFERENCE = "SAR-only"
AXIS = "data.label_share"
CHOICES = {"better on validation": ("SAR-only", "HFD")}
_METHODS = {
    REFERENCE: {"distill.method": ()},
    "HFD": {},
    "HFD, standardised per image": {"distill.hfd.over": "image"},
    "HFD of version 0.1": {
        "distill.hfd.form": "standardised",
        "distill.hfd.over": "image",
        "distill.hfd.weight": 17.5,
        "distill.max_share": 1.0,
    },
    "logit KD": {"distill.method": ("kd",)},
    "CWD": {"distill.method": ("cwd",)},
    "HFD + logit KD": {"distill.method": ("hfd", "kd")},
    "from teacher's weights": {"distill.method": (), "student.init": "teacher"},
    "teacher": {"stage": "teacher"},
}
ROWS = {
    f"{title} @ {share}": {"data.label_share": value, **fields}
    for share, value in {"10 %": 0.1, "100 %": 1.0}.items()
    for title, fields in _METHODS.items()
}
