"""Learning rates and numbers of steps for the teacher and both students, compared on the validation split.

tools/env python -m tools.compare --sweep=configs/sweeps/tuning_rates.py --workdir=runs/compare --seeds=1 \
    --config.eval.split=validation
"""

CONFIG = "configs/scenes.py"
REFERENCE = "SAR-only student, 300 steps, 0.03"
_ROWS = {"teacher (EO)": {"stage": "teacher"}, "SAR-only student": {"distill.method": ()}, "HFD student": {}}
ROWS = {
    f"{title}, {steps} steps, {rate:g}": {
        "optim.learning_rate": rate,
        "teacher.steps": steps,
        "student.steps": steps,
        **fields,
    }
    for title, fields in _ROWS.items()
    for steps in (300, 600)
    for rate in (0.003, 0.01, 0.03, 0.1)
}
