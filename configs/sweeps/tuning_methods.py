"""Weights of all rows of distillation_methods.py, compared on the validation split: the same three factors for each.

The factor applies to the weight of the first method; the weight of its partner stays. That is 69 students and one
teacher per seed.

tools/env python -m tools.compare --sweep=configs/sweeps/tuning_methods.py --workdir=runs/compare --seeds=1 \
    --config.eval.split=validation
"""

from configs import default
from configs.sweeps.distillation_methods import METHODS
from hfd_jax.experiments.sweep import value_at

CONFIG = "configs/scenes.py"
FACTORS = (0.2, 1.0, 5.0)
REFERENCE = "HFD, 1 of the weight"


def _weighted(fields: dict, factor: float) -> dict:
    field = f"distill.{fields.get('distill.method', ('hfd',))[0]}.weight"
    return {**fields, field: round(factor * value_at(default.get_config(), field), 6)}


ROWS = {
    f"{title}, {factor:g} of the weight": _weighted(fields, factor)
    for title, fields in METHODS.items()
    for factor in FACTORS
}
