"""OMBRIA: real Sentinel-1/2 flood chips, prepared as they are published (docs/data.md#recipes).

    tools/env python -m tools.prepare_data --dataset=folder --raw_dir=OMBRIA --description=configs/datasets/ombria.json
    tools/env python main.py --config=configs/ombria.py --workdir=runs/ombria

The network sees the image after the flood alone; --config.data.sar_bands="('VV_after','VV_before')" adds the one
before. The sizes suit a CPU.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.baselines = ("sar_only",)
    config.data.name = "folder/ombria"
    config.data.sar_bands = ("VV_after",)
    config.data.crop = 96
    config.model.width = 16
    config.optim.learning_rate = 0.01
    config.teacher.steps = 400
    config.student.steps = 400
    config.train.checkpoint_every = 100
    return config
