"""Effect of the number of steps with and without distillation, with the same teacher and a tenth of the labels.

tools/env python -m tools.compare --sweep=configs/sweeps/steps.py --workdir=runs/compare --seeds=3

The SAR-only student soon overfits its few labels; distillation keeps learning from the unlabelled pairs.
"""

CONFIG = "configs/scenes.py"
REFERENCE = "SAR-only student, 300 steps"
ROWS = {"teacher (EO)": {"stage": "teacher"}} | {
    f"{title}, {steps} steps": {"student.steps": steps, **fields}
    for title, fields in {"SAR-only student": {"distill.method": ()}, "HFD student": {}}.items()
    for steps in (300, 600, 1200)
}
