"""configs/scenes.py with another architecture, named after a colon.

    tools/env python main.py --config=configs/baselines.py:unet --workdir=runs/unet

Trains a teacher of that architecture on EO, then the same architecture on SAR only and on SAR with distillation. Names:
fcn, unet, deeplabv3plus, pspnet, hrnet, hrsarnet, mpresnet, segformer_b0. Widths are a quarter of the published ones
(hrsarnet: as published) and ResNets have 18 layers. For the published sizes, set --config.model.width=64 and, for
networks with a ResNet, --config.model.depth=50 (mpresnet: 34).

To train an architecture on SAR only, or several architectures for comparison with HFD-Net:

    tools/env python main.py --config=configs/baselines.py:unet --workdir=runs/unet_sar --config.stage=student \
        --config.baselines="()" --config.distill.method="()"
    tools/env python main.py --config=configs/scenes.py --workdir=runs/side_by_side \
        --config.baselines="('sar_only', 'unet', 'segformer_b0')"
"""

from configs import default, scenes

# For architectures that lack some of the default taps.
TAPS = {"unet": ("C3", "C4", "A"), "hrsarnet": ("C2", "C3", "A")}


def get_config(architecture="unet"):
    config = scenes.get_config()
    config.model.architecture = architecture
    if architecture == "hrsarnet":  # has no width
        config.model.width = default.get_config().model.width
    if architecture == "deeplabv3plus":
        config.model.rates = (1, 2, 3)  # the published rates, scaled from a map of 33 x 33 positions to one of 4 x 4
    config.distill.hfd.taps = TAPS.get(architecture, config.distill.hfd.taps)
    return config
