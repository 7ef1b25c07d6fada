"""The method taken apart: one thing changed per row. "without alignment" has a teacher without it, too.

tools/env python -m tools.compare --sweep=configs/sweeps/ablation.py --workdir=runs/compare --seeds=3
"""

CONFIG = "configs/quickstart.py"
REFERENCE = "HFD student"
FLOOR = "without distillation"
ROWS = {
    "teacher (EO)": {"stage": "teacher"},
    REFERENCE: {},
    "without distillation": {"distill.method": ()},
    "without alignment": {"model.align": "none"},
    "without both": {"model.align": "none", "distill.method": ()},
    "tap A alone": {"distill.hfd.taps": ("A",)},
    "from teacher's weights": {"student.init": "teacher"},
    "labelled pairs alone": {"data.labelled_per_batch": 1.0},
}
