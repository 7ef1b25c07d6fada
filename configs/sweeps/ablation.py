"""Ablation of the method: each row changes one thing. Where the network differs, the teacher has the same network.

If taps are removed or reweighted, each remaining tap keeps its effective weight (weight times the tap's share).

tools/env python -m tools.compare --sweep=configs/sweeps/ablation.py --workdir=runs/compare --seeds=3
"""

CONFIG = "configs/quickstart.py"
REFERENCE = "HFD student"
FLOOR = "without distillation"
ROWS = {
    "teacher (EO)": {"stage": "teacher"},
    REFERENCE: {},
    "without distillation": {"distill.method": ()},
    "with flows": {"model.align": "flow"},
    "stride 2": {"model.stride": 2},
    "stride 4": {"model.stride": 4},
    "without detail path": {"model.stride": 4, "model.detail_channels": ()},
    "tap A alone": {"distill.hfd.weight": 10.0, "distill.hfd.taps": ("A",)},
    "taps of equal weight": {"distill.hfd.weight": 10.0, "distill.hfd.tap_weights": (1, 1, 1, 1)},
    "encoder's taps alone": {"distill.hfd.weight": 7.5, "distill.hfd.taps": ("C3", "C4", "C5")},
    "from teacher's weights": {"student.init": "teacher"},
    "labelled pairs alone": {"data.unlabelled_ratio": 0.0},
}
