"""Whether the flows of the alignment module help the HFD student, over the size of the tiles.

tools/env python -m tools.compare --sweep=configs/sweeps/alignment.py --workdir=runs/compare --seeds=3

Teacher and student have the same alignment. All sizes show the same area per split and per step.
misregistration.py asks the same of pairs that are not registered.
"""

CONFIG = "configs/scenes.py"
REFERENCE = "plain pyramid"


def tiles(size: int) -> dict:
    part = (size // 64) ** 2
    return {
        "data.scenes.size": size,
        "data.crop": size,
        "data.batch_size": 16 // part,
        "data.scenes.train": 600 // part,
        "data.scenes.validation": 100 // part,
        "data.scenes.test": 200 // part,
    }


SIZES = (64, 128, 256)
AXIS = "data.scenes.size"
ALIGNMENTS = {REFERENCE: "none", "flow": "flow"}
ROWS = {
    f"{title} @ {size} px": {"model.align": align, **tiles(size)}
    for size in SIZES
    for title, align in ALIGNMENTS.items()
}
