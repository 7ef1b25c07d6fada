"""The gain from EO distillation: teacher, SAR-only student, student from the teacher's weights, HFD student.

tools/env python -m tools.compare --sweep=configs/sweeps/students.py --workdir=runs/compare --seeds=5
"""

CONFIG = "configs/scenes.py"
REFERENCE = "SAR-only student"
ROWS = {
    "teacher (EO)": {"stage": "teacher"},
    REFERENCE: {"distill.method": ()},
    "student from teacher's weights": {"distill.method": (), "student.init": "teacher"},
    "HFD student": {},
}
