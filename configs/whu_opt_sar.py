"""WHU-OPT-SAR land cover, seven classes. Sizes for one GPU of 24 GB or more.

tools/env python -m tools.prepare_data --dataset=whu_opt_sar --raw_dir=whu-opt-sar
tools/env python main.py --config=configs/whu_opt_sar.py --workdir=runs/whu_opt_sar
"""

from configs import default


def get_config():
    config = default.get_config()
    config.baselines = ("sar_only",)
    config.dtype = "bfloat16"
    config.data.name = "whu_opt_sar/scenes"
    config.data.crop = 256
    config.data.batch_size = 32
    config.data.workers = 4
    config.augment.eo_gain = 0.1
    config.model.depth = 50
    config.loss.class_weights = "inverse_sqrt"
    config.optim.learning_rate = 1e-3
    config.teacher.steps = 30_000
    config.student.steps = 30_000
    config.train.log_every = 100
    config.train.eval_every = 5_000
    config.train.checkpoint_every = 1_000
    config.eval.batch_size = 8
    return config
