"""Compares HFD with SAR segmentation networks that are trained on SAR only with the same budget.

tools/env python -m tools.compare --sweep=configs/sweeps/hfd_vs_baselines.py --workdir=runs/compare --seeds=3

The teacher is the upper bound; "student from teacher's weights" is the inexpensive alternative to distillation. The
networks have about the student's size, 0.7 to 2 million parameters (HR-SARNet: as published): a quarter of the
published width and ResNets with 18 layers; HRNet and SegFormer, which are small as published, have half the width.
DeepLabV3+'s rates are scaled to the size of the feature map. On SAR only, each network uses the learning rate among
0.01, 0.03 and 0.1 that scores best on the validation split (tuning_networks.py); the HFD-Net student scores equally
well at 0.1 and at the quickstart's 0.03 and uses 0.03. Two networks are also distilled, from the same teacher and at
its learning rate. HFD-Net's students also run for twice the steps, which matches the cost of the larger networks.
"""

CONFIG = "configs/scenes.py"
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
RATES = {"U-Net": 0.01, "DeepLabV3+": 0.1, "PSPNet": 0.1, "HR-SARNet": 0.1, "MP-ResNet": 0.1, "SegFormer": 0.1}
_ALONE = {
    f"{title} on SAR": {
        "distill.method": (),
        **network,
        **({"optim.learning_rate": RATES[title]} if title in RATES else {}),
    }
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
    "U-Net, HFD": {**NETWORKS["U-Net"], "distill.hfd.taps": ("C3", "C4", "A")},
    "HR-SARNet, HFD": {**NETWORKS["HR-SARNet"], "distill.hfd.taps": ("C2", "C3", "A")},
}
