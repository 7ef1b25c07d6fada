"""Networks and methods on tiles of 256 pixels at standard width, for a GPU.

On tiles of 64 pixels FCN, PSPNet and MP-ResNet classify a map of 8 x 8 positions, here one of 32 x 32. DeepLabV3+'s
rates are half the published ones, as its map has half the published size.

tools/env python -m tools.compare --sweep=configs/sweeps/large_tiles.py --workdir=runs/large --seeds=3
"""

from configs.sweeps.distillation_methods import METHODS
from configs.sweeps.hfd_vs_baselines import NETWORKS, REFERENCE

CONFIG = "configs/scenes.py"
_TILES = {
    "data.scenes.size": 256,
    "data.crop": 256,
    "data.batch_size": 8,
    "data.scenes.train": 600,
    "model.width": 64,
    "optim.learning_rate": 0.003,
}
_METHODS = ("logit KD", "CWD", "FitNet + logit KD", "CIRKD + logit KD", "MGD + CWD", "HFD + logit KD")
_NETWORKS = {
    title: {field: value for field, value in network.items() if field != "student.width"}
    for title, network in (NETWORKS | {"DeepLabV3+": NETWORKS["DeepLabV3+"] | {"model.rates": (3, 6, 9)}}).items()
}
ROWS = {
    "teacher (EO)": {"stage": "teacher", **_TILES},
    REFERENCE: {"distill.method": (), **_TILES},
    "HFD student": _TILES,
    **{f"{title} student": {**METHODS[title], **_TILES} for title in _METHODS},
    **{f"{title} on SAR": {**network, "distill.method": (), **_TILES} for title, network in _NETWORKS.items()},
    **{f"{title}, HFD": {**network, **_TILES} for title, network in _NETWORKS.items()},
}
