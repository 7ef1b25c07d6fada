"""Compares segmentation networks on SAR alone and distilled with HFD from one teacher, with the same budget.

tools/env python -m tools.compare --sweep=configs/sweeps/hfd_vs_baselines.py --workdir=runs/compare --seeds=3

The teacher is the upper bound; "student from teacher's weights" is the inexpensive alternative to distillation. The
networks have about the student's size, 0.7 to 2 million parameters (HR-SARNet: as published): a quarter of the
published width and ResNets with 18 layers; HRNet and SegFormer, which are small as published, have half the width.
DeepLabV3+'s rates are scaled to the size of the feature map. Every network is distilled from the same HFD-Net, whose
learning rate is that of configs/scenes.py, and uses the learning rate that scored best on the validation split
(tuning_networks.py): so far one of 0.01, 0.03 and 0.1 on SAR alone, and 0.03 where distilled. HFD-Net's students also
run for twice the steps, which matches the cost of the larger networks.
"""

CONFIG = "configs/scenes.py"
REFERENCE = "SAR-only student"
NETWORKS = {
    "FCN": {"student.architecture": "fcn"},
    "U-Net": {"student.architecture": "unet", "distill.hfd.taps": ("C3", "C4", "A")},
    "DeepLabV3+": {"student.architecture": "deeplabv3plus", "model.rates": (1, 2, 3)},
    "PSPNet": {"student.architecture": "pspnet"},
    "HRNet": {"student.architecture": "hrnet", "student.width": 32},
    "HR-SARNet": {"student.architecture": "hrsarnet", "distill.hfd.taps": ("C2", "C3", "A")},
    "MP-ResNet": {"student.architecture": "mpresnet"},
    "SegFormer": {"student.architecture": "segformer_b0", "student.width": 32},
}
RATES = {"U-Net": 0.01, "DeepLabV3+": 0.1, "PSPNet": 0.1, "HR-SARNet": 0.1, "MP-ResNet": 0.1, "SegFormer": 0.1}
_ALONE = {
    f"{title} on SAR": {"distill.method": (), "student.learning_rate": RATES.get(title, 0.03), **network}
    for title, network in NETWORKS.items()
}
ROWS = {
    "teacher (EO)": {"stage": "teacher"},
    REFERENCE: {"distill.method": ()},
    "SAR-only student, 600 steps": {"distill.method": (), "student.steps": 600},
    **_ALONE,
    "student from teacher's weights": {"distill.method": (), "student.init": "teacher"},
    "HFD student": {},
    "HFD student, 600 steps": {"student.steps": 600},
    **{f"{title}, HFD": network for title, network in NETWORKS.items()},
}
