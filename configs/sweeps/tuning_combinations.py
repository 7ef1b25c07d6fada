"""HFD, its strongest rivals, and both together, compared on the validation split.

tools/env python -m tools.compare --sweep=configs/sweeps/tuning_combinations.py --workdir=runs/compare --seeds=3 \
    --config.eval.split=validation
"""

CONFIG = "configs/quickstart.py"
REFERENCE = "HFD"
ROWS = {
    "HFD": {},
    "HFD, weight 40": {"distill.hfd.weight": 40.0},
    "HFD, A counts four times": {"distill.hfd.weight": 17.5, "distill.hfd.tap_weights": (1, 1, 1, 4)},
    "CWD": {"distill.method": ("cwd",)},
    "FitNet": {"distill.method": ("fitnet",)},
    "HFD + logit KD": {"distill.method": ("hfd", "kd")},
    "HFD + CWD": {"distill.method": ("hfd", "cwd")},
    "HFD + FitNet": {"distill.method": ("hfd", "fitnet")},
}
