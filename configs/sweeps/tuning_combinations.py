"""HFD, the strongest other methods, and their combinations, compared on the validation split.

tools/env python -m tools.compare --sweep=configs/sweeps/tuning_combinations.py --workdir=runs/compare --seeds=3 \
    --config.eval.split=validation
"""

CONFIG = "configs/scenes.py"
REFERENCE = "HFD"
ROWS = {
    "HFD": {},
    "CWD": {"distill.method": ("cwd",)},
    "FitNet": {"distill.method": ("fitnet",)},
    "HFD + logit KD": {"distill.method": ("hfd", "kd")},
    "HFD + CWD": {"distill.method": ("hfd", "cwd")},
    "HFD + FitNet": {"distill.method": ("hfd", "fitnet")},
}
