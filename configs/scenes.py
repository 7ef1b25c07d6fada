"""The simulated scenes of most results: few labels, many pairs, on two CPU cores.

    tools/env python main.py --config=configs/scenes.py --workdir=runs/scenes

Of 600 simulated pairs, 60 keep their label. The teacher and the SAR-only student train on those 60; the HFD student
also learns from the teacher's features on the other 540. The scenes are ideal: training and test tiles come from one
world, nearly all that the optical image shows is about the classes, and labels are exact. configs/quickstart.py has
scenes that are not.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.baselines = ("sar_only",)
    config.data.label_share = 0.1
    config.model.width = 16
    config.optim.learning_rate = 0.03  # chosen on the validation split, configs/sweeps/tuning_networks.py
    config.teacher.steps = 300
    config.student.steps = 300
    return config
