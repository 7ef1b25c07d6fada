"""The public data sets that configs/datasets/ describes (docs/data.md#recipes), for one GPU; choose one by name.

    tools/env python -m tools.prepare_data --dataset=folder --raw_dir=v1.1 \
        --description=configs/datasets/sen1floods11.json
    tools/env python main.py --config=configs/recipes.py:sen1floods11 --workdir=runs/sen1floods11

The sizes are where to start; nothing has been measured with them. Choose the learning rate on the validation split.
"""

from configs import default
from hfd_jax.core.errors import ConfigError, nearest

# Data set -> (crop, batch, steps of either stage). A crop is at most as large as a tile.
SIZES = {
    "sen1floods11": (256, 16, 5_000),
    "bright": (512, 8, 20_000),
    "openearthmap_sar": (512, 8, 20_000),
    "terramesh": (256, 32, 50_000),
    "bigearthnet": (96, 64, 50_000),
}


def get_config(name="sen1floods11"):
    config = default.get_config()
    if name not in SIZES:
        raise ConfigError(f"configs/recipes.py:{name}: {nearest(name, SIZES)}")
    config.data.name = f"folder/{name}"
    config.data.crop, config.data.batch_size, config.teacher.steps = SIZES[name]
    config.student.steps = config.teacher.steps
    config.baselines = ("sar_only",)
    config.dtype = "bfloat16"
    config.data.workers = 4
    config.augment.eo_gain = 0.1
    config.model.depth = 50
    config.loss.class_weights = "inverse_sqrt"
    config.optim.learning_rate = 1e-3
    config.train.log_every = 100
    config.train.checkpoint_every = 1_000
    config.eval.batch_size = 8
    return config
