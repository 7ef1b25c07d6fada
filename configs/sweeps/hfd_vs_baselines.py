"""HFD beside SAR segmentation networks that are trained on SAR alone, on the same budget.

tools/env python -m tools.compare --sweep=configs/sweeps/hfd_vs_baselines.py --workdir=runs/compare --seeds=3

The teacher is the ceiling; "student from teacher's weights" is the cheap rival of distillation. Networks are of about
the student's size, 0.7 to 2 million parameters (HR-SARNet: as published): a quarter of the published width and ResNets
of 18 layers; HRNet and SegFormer, which are small as published, half of the width. DeepLabV3+'s rates are in proportion
to the map. On the validation split all of them, distilled or not, do better at a learning rate of 0.01 than at the
quickstart's (tuning_networks.py). Two of them are distilled as well, from the same teacher.
"""

CONFIG = "configs/quickstart.py"
REFERENCE = "SAR-only student"
NETWORKS = {
    "FCN": {"student.architecture": "fcn"},
    "U-Net": {"student.architecture": "unet"},
    "DeepLabV3+": {"student.architecture": "deeplabv3plus", "model.rates": (1, 2, 3)},
    "PSPNet": {"student.architecture": "pspnet"},
    "HRNet": {"student.architecture": "hrnet", "model.width": 32},
    "HR-SARNet": {"student.architecture": "hrsarnet"},
    "MP-ResNet": {"student.architecture": "mpresnet"},
    "SegFormer": {"student.architecture": "segformer_b0", "model.width": 32},
}
ROWS = {
    "teacher (EO)": {"stage": "teacher"},
    REFERENCE: {"distill.method": ()},
    **{f"{title} on SAR": {"distill.method": (), **network} for title, network in NETWORKS.items()},
    "student from teacher's weights": {"distill.method": (), "student.init": "teacher"},
    "HFD student": {},
    "U-Net, HFD": {**NETWORKS["U-Net"], "distill.hfd.taps": ("C3", "C4", "A")},
    "HR-SARNet, HFD": {**NETWORKS["HR-SARNet"], "distill.hfd.taps": ("C2", "C3", "A")},
}
