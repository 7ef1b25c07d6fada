"""SpaceNet 6 building footprints. Sizes for one GPU of 24 GB or more.

    tools/env python -m tools.prepare_data --dataset=spacenet6 --raw_dir=SN6/train/AOI_11_Rotterdam
    tools/env python main.py --config=configs/spacenet6.py --workdir=runs/spacenet6

For the challenge's baseline split, prepare with --splitting=baseline and add --config.data.name=spacenet6/baseline
--config.eval.split=validation; tools.prepare_data prints how many training tiles overlap validation tiles.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.baselines = ("sar_only",)
    config.dtype = "bfloat16"
    config.data.name = "spacenet6/ten_fold_0"
    config.data.crop = 512
    config.data.batch_size = 8
    config.data.workers = 4
    config.augment.eo_gain = 0.1
    config.model.depth = 50
    config.optim.learning_rate = 1e-3
    config.teacher.steps = 20_000
    config.student.steps = 20_000
    config.train.log_every = 100
    config.train.eval_every = 2_000
    config.train.checkpoint_every = 1_000
    config.eval.batch_size = 4
    return config
