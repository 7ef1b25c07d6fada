"""Weights of the methods of distillation_methods.py and of combinations, compared on the validation split.

tools/env python -m tools.compare --sweep=configs/sweeps/tuning_methods.py --workdir=runs/compare --seeds=1 \
    --config.eval.split=validation
"""

from configs import default
from configs.sweeps.distillation_methods import METHODS

CONFIG = "configs/scenes.py"
REFERENCE = "HFD, 1 of the weight"
_DEFAULTS = {methods: default.get_config().distill[methods[0]].weight for methods in METHODS.values()}
ROWS = {title: {"distill.method": methods} for title, methods in METHODS.items() if len(methods) > 1}
ROWS |= {
    f"{title}, {factor:g} of the weight": {
        "distill.method": methods,
        f"distill.{methods[0]}.weight": round(factor * _DEFAULTS[methods], 6),
    }
    for title, methods in METHODS.items()
    if len(methods) == 1
    for factor in (0.2, 1.0, 5.0)
}
