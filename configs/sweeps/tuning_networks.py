"""Learning rates of the networks of hfd_vs_baselines.py, compared on the validation split.

tools/env python -m tools.compare --sweep=configs/sweeps/tuning_networks.py --workdir=runs/compare --seeds=1 \
    --config.eval.split=validation
"""

from configs.sweeps.hfd_vs_baselines import NETWORKS

CONFIG = "configs/scenes.py"
REFERENCE = "SAR-only student, 0.03"
_ON_SAR = {title: {"distill.method": (), **network} for title, network in {"SAR-only student": {}, **NETWORKS}.items()}
ROWS = {
    f"{title}, {rate:g}": {"optim.learning_rate": rate, **fields}
    for title, fields in {**_ON_SAR, "HFD student": {}, "teacher (EO)": {"stage": "teacher"}}.items()
    for rate in (0.01, 0.03, 0.1)
}
