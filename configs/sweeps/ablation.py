"""The method taken apart: one thing changed per row. "without alignment" has a teacher without it, too.

Where taps are left out or weighed differently the others keep their pull (weight times share of the tap).

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
    "tap A alone": {"distill.hfd.weight": 10.0, "distill.hfd.taps": ("A",)},
    "taps of equal weight": {"distill.hfd.weight": 10.0, "distill.hfd.tap_weights": (1, 1, 1, 1)},
    "encoder's taps alone": {"distill.hfd.weight": 7.5, "distill.hfd.taps": ("C3", "C4", "C5")},
    "from teacher's weights": {"student.init": "teacher"},
    "labelled pairs alone": {"data.labelled_per_batch": 1.0},
}
