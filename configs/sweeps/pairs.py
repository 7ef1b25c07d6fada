"""How many unlabelled pairs replace how many labels: mIoU over the number of unlabelled pairs beside 60 labelled ones.

tools/env python -m tools.compare --sweep=configs/sweeps/pairs.py --workdir=runs/compare --seeds=3

The first 60 (150, 600) training tiles are labelled. Every row has its own teacher, trained on the same labels.
"""

CONFIG = "configs/scenes.py"
REFERENCE = "SAR-only"


def _pairs(labelled: int, unlabelled: int) -> dict:
    """A data set whose first `labelled` training tiles have labels, and as many further pairs as stated."""
    total = labelled + unlabelled
    return {
        "data.scenes.train": total,
        "data.scenes.unlabelled_share": unlabelled / total,
        "data.label_share": 1.0,
    }


ROWS = {
    REFERENCE: {**_pairs(60, 0), "distill.method": ()},
    "SAR-only, 150 labels": {**_pairs(150, 0), "distill.method": ()},
    "SAR-only, 600 labels": {**_pairs(600, 0), "distill.method": ()},
    **{f"HFD, {more} unlabelled pairs": _pairs(60, more) for more in (0, 540, 2000, 6000)},
}
