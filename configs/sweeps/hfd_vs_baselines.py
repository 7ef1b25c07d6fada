"""HFD beside SAR segmentation networks that are trained on SAR alone, on the same budget.

tools/env python -m tools.compare --sweep=configs/sweeps/hfd_vs_baselines.py --workdir=runs/baselines --seeds=3

The teacher is the ceiling; "student from teacher's weights" is the cheap rival of distillation.
"""

CONFIG = "configs/quickstart.py"
REFERENCE = "SAR-only student"
_ARCHITECTURES = {
    "FCN": "fcn",
    "U-Net": "unet",
    "DeepLabV3+": "deeplabv3plus",
    "PSPNet": "pspnet",
    "HRNet": "hrnet",
    "HR-SARNet": "hrsarnet",
    "MP-ResNet": "mpresnet",
    "SegFormer-B0": "segformer_b0",
}
ROWS = {
    "teacher (EO)": {"stage": "teacher"},
    REFERENCE: {"distill.method": ()},
    **{
        f"{title} on SAR": {"distill.method": (), "student.architecture": name}
        for title, name in _ARCHITECTURES.items()
    },
    "student from teacher's weights": {"distill.method": (), "student.init": "teacher"},
    "HFD student": {},
}
