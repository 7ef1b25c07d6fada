"""Effect of the number of steps with and without distillation, with the same teacher and a tenth of the labels.

tools/env python -m tools.compare --sweep=configs/sweeps/steps.py --workdir=runs/compare --seeds=3

The SAR-only student soon overfits its few labels; distillation keeps learning from the unlabelled pairs. "Steps by
validation" takes, per seed, the number of steps that scores best on the validation split: the same rule for both.
"""

CONFIG = "configs/scenes.py"
STEPS = (300, 600, 1200)
_STUDENTS = {"SAR-only student": {"distill.method": ()}, "HFD student": {}}
CHOICES = {f"{title}, steps by validation": tuple(f"{title}, {steps} steps" for steps in STEPS) for title in _STUDENTS}
REFERENCE = "SAR-only student, steps by validation"
ROWS = {"teacher (EO)": {"stage": "teacher"}} | {
    f"{title}, {steps} steps": {"student.steps": steps, **fields}
    for title, fields in _STUDENTS.items()
    for steps in STEPS
}
