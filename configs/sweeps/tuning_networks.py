"""Learning rates of the networks of hfd_vs_baselines.py, compared on the validation split: the same grid for each.

The best rate of a network should lie inside the grid. All distilled rows share a teacher, which has that of
configs/scenes.py; the teacher's own rates are rows too. That is 90 students and five teachers per seed.

tools/env python -m tools.compare --sweep=configs/sweeps/tuning_networks.py --workdir=runs/compare --seeds=1 \
    --config.eval.split=validation
"""

from configs.sweeps.hfd_vs_baselines import NETWORKS

CONFIG = "configs/scenes.py"
GRID = (0.003, 0.01, 0.03, 0.1, 0.3)
REFERENCE = "SAR-only student, 0.03"
_STUDENTS = {
    "SAR-only student": {"distill.method": ()},
    "HFD student": {},
    **{f"{title} on SAR": {**network, "distill.method": ()} for title, network in NETWORKS.items()},
    **{f"{title}, HFD": network for title, network in NETWORKS.items()},
}
ROWS = {
    **{
        f"{title}, {rate:g}": {"student.learning_rate": rate, **fields}
        for title, fields in _STUDENTS.items()
        for rate in GRID
    },
    **{f"teacher (EO), {rate:g}": {"stage": "teacher", "optim.learning_rate": rate} for rate in GRID},
}
