"""OMBRIA: real Sentinel-1/2 flood chips, prepared as they are published (docs/data.md#recipes).

    tools/env python -m tools.prepare_data --dataset=folder --raw_dir=OMBRIA --description=configs/datasets/ombria.json
    tools/env python main.py --config=configs/ombria.py --workdir=runs/ombria

Cross-validation over flood events, here with fold 0 (of 0 to 3) as the test split:

    tools/env python -m tools.prepare_data --dataset=folder --raw_dir=OMBRIA --test_fold=0 \
        --description=configs/datasets/ombria_folds.json
    tools/env python main.py --config=configs/ombria.py:0 --workdir=runs/ombria_0

The network sees the image after the flood alone; --config.data.sar_bands="('VV_after','VV_before')" adds the one
before. The sizes suit a CPU.
"""

from configs import default


def get_config(fold=""):
    config = default.get_config()
    config.baselines = ("sar_only",)
    config.data.name = f"folder/ombria_fold{fold}" if fold else "folder/ombria"
    config.data.sar_bands = ("VV_after",)
    config.data.crop = 96
    config.model.width = 16
    config.optim.learning_rate = 0.01
    config.teacher.steps = 400
    config.student.steps = 400
    config.train.checkpoint_every = 100
    return config
