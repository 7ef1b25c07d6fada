"""HFD-Net and the two best other networks of hfd_vs_baselines.py, on SAR alone and distilled from the same teacher.

tools/env python -m tools.compare --sweep=configs/sweeps/leaders.py --workdir=runs/compare --seeds=3

Every row uses the learning rate that scores best on the validation split (tuning_leaders.py). The U-Net has a quarter
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
ROWS = {
    "teacher (EO)": {"stage": "teacher"},
    **NETWORKS,
}
