"""HFD-Net and the two best other networks of hfd_vs_baselines.py, on SAR alone and distilled from the same teacher.

tools/env python -m tools.compare --sweep=configs/sweeps/leaders.py --workdir=runs/compare --seeds=3

Every student has the learning rate that scored best on the validation split (tuning_leaders.py, where its teacher had
the same rate); the teacher has that of the config. The U-Net has a quarter of its published width, HR-SARNet its
published size.
"""

from configs.sweeps.hfd_vs_baselines import RATES

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
_RATES = {f"{network} on SAR": RATES[network] for network in ("U-Net", "HR-SARNet")}  # of all others: the config's
ROWS = TEACHER | {
    title: fields | ({"student.learning_rate": _RATES[title]} if title in _RATES else {})
    for title, fields in NETWORKS.items()
}
