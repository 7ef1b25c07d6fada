"""Distillation methods and networks on real radar, the flood chips of OMBRIA, with a tenth and all of the labels.

tools/env python -m tools.compare --sweep=configs/sweeps/ombria_methods.py --workdir=runs/ombria --seeds=3 --at_once=2

The runs of ombria.py in the same workdir are reused.
"""

from configs.sweeps.distillation_methods import METHODS
from configs.sweeps.hfd_vs_baselines import NETWORKS

CONFIG = "configs/ombria.py"
REFERENCE = "HFD"
FLOOR = "SAR-only"
AXIS = "data.label_share"
SHARES = {"10 %": 0.1, "100 %": 1.0}
_NETWORKS = {title: NETWORKS[title] for title in ("U-Net", "HR-SARNet", "DeepLabV3+")}
_CURVES = {
    "teacher (EO)": {"stage": "teacher"},
    FLOOR: {"distill.method": ()},
    **METHODS,
    **{f"{title} on SAR": {**network, "distill.method": ()} for title, network in _NETWORKS.items()},
    **{f"{title}, HFD": network for title, network in _NETWORKS.items()},
}
ROWS = {
    f"{title} @ {share}": {"data.label_share": value, **fields}
    for share, value in SHARES.items()
    for title, fields in _CURVES.items()
}
