"""Few labels, many pairs, simulated data: the two stages in a few minutes on two CPU cores.

    tools/env python main.py --config=configs/quickstart.py --workdir=runs/quickstart

As configs/scenes.py, but with what real data have: test tiles come from other regions than training tiles, crops, haze
and clouds change what the optical camera sees, moisture what the radar sees, and training labels are not exact.
"""

from configs import scenes


def get_config():
    config = scenes.get_config()
    config.data.scenes.regions = 20
    config.data.scenes.nuisance = 1.0
    config.data.scenes.clouds = 0.1
    config.data.scenes.label_shift = 0.7
    config.data.scenes.label_change = 0.05
    return config
