"""Learning rates of the networks of leaders.py, compared on the validation split; students have a teacher of
the same rate.

tools/env python -m tools.compare --sweep=configs/sweeps/tuning_leaders.py --workdir=runs/compare --seeds=1 \
    --config.eval.split=validation
"""

from configs.sweeps.leaders import NETWORKS, REFERENCE, TEACHER

CONFIG = "configs/scenes.py"
_RATES = {
    "teacher (EO)": (0.01, 0.03, 0.1),
    REFERENCE: (0.01, 0.03, 0.1),
    "HFD student": (0.01, 0.03, 0.1),
    "U-Net on SAR": (0.003, 0.01, 0.03, 0.1),
    "U-Net, HFD": (0.01, 0.03, 0.1),
    "HR-SARNet on SAR": (0.03, 0.1, 0.3),
    "HR-SARNet, HFD": (0.03, 0.1, 0.3),
}
REFERENCE = f"{REFERENCE}, 0.03"
ROWS = {
    f"{title}, {rate:g}": {"optim.learning_rate": rate, **(TEACHER | NETWORKS)[title]}
    for title, rates in _RATES.items()
    for rate in rates
}
