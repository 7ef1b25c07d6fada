"""The weight of HFD's aggregated tap, chosen on the validation split, with few labels and with all labels.

tools/env python -m tools.compare --sweep=configs/sweeps/tuning_taps.py --workdir=runs/compare --seeds=3 \
    --config.eval.split=validation

In both rows, each encoder tap has the effective weight 2.5; tap A has either 2.5 or 10.
"""

CONFIG = "configs/quickstart.py"
SHARES = {"10 %": 0.1, "100 %": 1.0}
AXIS = "data.label_share"
REFERENCE = "taps of equal weight"
_CURVES = {
    REFERENCE: {"distill.hfd.weight": 10.0, "distill.hfd.tap_weights": (1, 1, 1, 1)},
    "A counts four times": {},
}
ROWS = {
    f"{curve} @ {share}": {**fields, "data.label_share": value}
    for share, value in SHARES.items()
    for curve, fields in _CURVES.items()
}
