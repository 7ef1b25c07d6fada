"""SEN12MS land cover, ten classes; --config.data.name=sen12ms/dfc2020 for the eight that DFC2020 scores. For one GPU.

    tools/env python -m tools.prepare_data --dataset=sen12ms --raw_dir=SEN12MS
    tools/env python main.py --config=configs/sen12ms.py --workdir=runs/sen12ms

The optical input leaves out the bands of 60 m (B1, B9, B10), as the data set's authors do.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.baselines = ("sar_only",)
    config.dtype = "bfloat16"
    config.data.name = "sen12ms/simplified"
    config.data.eo_bands = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
    config.data.crop = 256
    config.data.batch_size = 32
    config.data.workers = 4
    config.normalise.clip = True
    config.augment.sar_gain_db = 1.0
    config.augment.eo_gain = 0.1
    config.model.depth = 50
    config.loss.class_weights = "inverse_sqrt"
    config.optim.learning_rate = 1e-3
    config.teacher.steps = 50_000
    config.student.steps = 50_000
    config.train.log_every = 100
    config.train.eval_every = 10_000
    config.train.checkpoint_every = 2_000
    config.eval.batch_size = 32
    return config
