"""Which features of the teacher HFD compares, chosen on the validation split.

tools/env python -m tools.compare --sweep=configs/sweeps/tuning_taps.py --workdir=runs/compare --seeds=3 \
    --config.eval.split=validation

P is the pyramid at stride 4, A the classifier's input at stride 1. The weights are those of the taps in their order.
"""

CONFIG = "configs/scenes.py"
REFERENCE = "C3 C4 C5 A, 1 1 1 4"


def _row(taps: str, weights: str) -> dict:
    return {
        "distill.hfd.taps": tuple(taps.split()),
        "distill.hfd.tap_weights": tuple(float(weight) for weight in weights.split()),
    }


ROWS = {
    f"{taps}, {weights}": _row(taps, weights)
    for taps, weights in (
        ("C3 C4 C5 A", "1 1 1 4"),
        ("C3 C4 C5 P", "1 1 1 4"),
        ("C3 C4 C5 P A", "1 1 1 4 4"),
        ("P A", "1 1"),
        ("A", "1"),
    )
}
