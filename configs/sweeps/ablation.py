"""Ablation of the method: each row changes one thing. Where the network differs, the teacher has the same network.

If taps are removed or reweighted, each remaining tap keeps its effective weight (weight times the tap's share).

tools/env python -m tools.compare --sweep=configs/sweeps/ablation.py --workdir=runs/compare --seeds=3
"""

from configs import default

CONFIG = "configs/scenes.py"
_WEIGHT = default.get_config().distill.hfd.weight
_A = round(_WEIGHT * 4 / 7, 6)  # what tap A has of it
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
    "without log-variances": {"distill.hfd.form": "squared", "distill.hfd.weight": 1.0},
    "standardised per image": {"distill.hfd.over": "image"},
    "HFD of version 0.1": {
        "distill.hfd.form": "standardised",
        "distill.hfd.over": "image",
        "distill.hfd.weight": 17.5,
        "distill.max_share": 1.0,
    },
    "share not limited": {"distill.max_share": 1.0},
    "confident pixels alone": {"distill.min_confidence": 0.8},
    "tap A alone": {"distill.hfd.weight": _A, "distill.hfd.taps": ("A",)},
    "taps of equal weight": {"distill.hfd.tap_weights": (1, 1, 1, 1)},
    "encoder's taps alone": {"distill.hfd.weight": _WEIGHT - _A, "distill.hfd.taps": ("C3", "C4", "C5")},
    "from teacher's weights": {"student.init": "teacher"},
    "labelled pairs alone": {"data.unlabelled_ratio": 0.0},
}
