"""What more steps bring with and without distillation, after the same teacher and with a tenth of the labels.

tools/env python -m tools.compare --sweep=configs/sweeps/steps.py --workdir=runs/compare --seeds=3

What sees few labels alone soon knows them by heart; the pairs without labels go on teaching.
"""

CONFIG = "configs/quickstart.py"
REFERENCE = "SAR-only student, 300 steps"
ROWS = {"teacher (EO)": {"stage": "teacher"}} | {
    f"{title}, {steps} steps": {"student.steps": steps, **fields}
    for title, fields in {"SAR-only student": {"distill.method": ()}, "HFD student": {}}.items()
    for steps in (300, 600, 1200)
}
