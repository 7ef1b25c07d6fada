"""The quickstart with another architecture; its name follows the file's after a colon.

    tools/env python main.py --config=configs/baselines.py:unet --workdir=runs/unet

A teacher of that architecture is trained on EO, then the same network on SAR alone, and on SAR with distillation.
Names: fcn, unet, deeplabv3plus, pspnet, hrnet, hrsarnet, mpresnet, segformer_b0. Widths are a quarter of the published
ones (hrsarnet: as published), ResNets have 18 layers; --config.model.width=64 and, where there is a ResNet,
--config.model.depth=50 (mpresnet: 34) are as published. One of them on SAR alone, and some of them beside HFD-Net:

    tools/env python main.py --config=configs/baselines.py:unet --workdir=runs/unet_sar --config.stage=student \
        --config.baselines="()" --config.distill.method="()"
    tools/env python main.py --config=configs/quickstart.py --workdir=runs/side_by_side \
        --config.baselines="('sar_only', 'unet', 'segformer_b0')"
"""

from configs import default, quickstart

# Where the architecture does not have all of the default's.
TAPS = {"unet": ("C3", "C4", "A"), "hrsarnet": ("C2", "C3", "A")}


def get_config(architecture="unet"):
    config = quickstart.get_config()
    config.model.architecture = architecture
    if architecture == "hrsarnet":  # of one size
        config.model.width = default.get_config().model.width
    if architecture == "deeplabv3plus":
        config.model.rates = (1, 2, 3)  # in proportion to the published ones, whose map is 33 x 33, ours 4 x 4
    config.distill.hfd.taps = TAPS.get(architecture, config.distill.hfd.taps)
    return config
