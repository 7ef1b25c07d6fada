"""HFD-Net and the two best other networks of hfd_vs_baselines.py, on SAR alone and distilled from the same teacher.

tools/env python -m tools.compare --sweep=configs/sweeps/leaders.py --workdir=runs/compare --seeds=3

Every student has the learning rate that scores best on the validation split (tuning_leaders.py), the teacher that of
the config. The U-Net has a quarter
of its published width, HR-SARNet its published size.
"""

CONFIG = "configs/scenes.py"
REFERENCE = "SAR-only student"
ALONE = {"distill.method": ()}
UNET = {"student.architecture": "unet", "distill.hfd.taps": ("C3", "C4", "A")}
HRSARNET = {"student.architecture": "hrsarnet", "distill.hfd.taps": ("C2", "C3", "A")}
NETWORKS = {
    REFERENCE: ALONE,
    "HFD student": {},
    "U-Net on SAR": {**UNET, **ALONE},
    "U-Net, HFD": UNET,
    "HR-SARNet on SAR": {**HRSARNET, **ALONE},
    "HR-SARNet, HFD": HRSARNET,
}
TEACHER = {"teacher (EO)": {"stage": "teacher"}}
_RATES = {"U-Net on SAR": 0.01, "HR-SARNet on SAR": 0.1}  # the best one of all others is that of the config, 0.03
ROWS = TEACHER | {
    title: fields | ({"student.learning_rate": _RATES[title]} if title in _RATES else {})
    for title, fields in NETWORKS.items()
}
