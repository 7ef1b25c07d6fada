"""Whether the flows of the alignment module help where SAR and optical images are shifted against each other.

tools/env python -m tools.compare --sweep=configs/sweeps/misregistration.py --workdir=runs/compare --seeds=3

Tiles of 128 pixels; each optical image is shifted by this many pixels in a random direction.
"""

from configs.sweeps.alignment import ALIGNMENTS, REFERENCE, tiles  # noqa: F401

CONFIG = "configs/scenes.py"
AXIS = "data.scenes.misregistration"
ROWS = {
    f"{title} @ {shift:g} px": {"model.align": align, **tiles(128), AXIS: shift}
    for shift in (1.0, 2.0)
    for title, align in ALIGNMENTS.items()
}
