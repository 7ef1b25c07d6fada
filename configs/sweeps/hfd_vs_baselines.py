"""HFD beside SAR segmentation networks that are trained on SAR alone, on the same budget.

tools/env python -m tools.compare --sweep=configs/sweeps/hfd_vs_baselines.py --workdir=runs/compare --seeds=3

The teacher is the ceiling; "student from teacher's weights" is the cheap rival of distillation. Networks are of about
the student's size, 0.7 to 2 million parameters (HR-SARNet: as published): a quarter of the published width and ResNets
of 18 layers; HRNet and SegFormer, which are small as published, half of the width. DeepLabV3+'s rates are in proportion
to the map. On SAR alone each has the learning rate, of 0.01, 0.03 and 0.1, that does best on the validation split
(tuning_networks.py); the HFD-Net student is as good at 0.1 as at the quickstart's 0.03, and has 0.03. Two of them are
distilled as well, from the same teacher and at its rate. HFD-Net's students have twice the steps, too: the cost of the
larger networks.
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
