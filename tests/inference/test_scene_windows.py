"""Windows of a scene and how they are blended, without any network or file."""

import numpy as np
import pytest

from hfd_jax.core.errors import UserError
from hfd_jax.inference.mapping.listing import find_scenes, targets
from hfd_jax.inference.mapping.mosaic import Mosaic
from hfd_jax.inference.mapping.windows import Grid, place
from hfd_jax.inference.mapping.writer import CLASSES, CONFIDENCE, products_of


@pytest.mark.parametrize("length", [1, 32, 127, 128, 129, 200, 1000, 1025])
@pytest.mark.parametrize(("window", "overlap"), [(128, 64), (128, 32), (128, 0), (96, 64)])
def test_weights_add_up_to_one_on_a_grid_of_the_stride(length, window, overlap):
    axis, end = place(length, window, overlap), -(-length // 32) * 32
    total = np.zeros(end)
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        total[start : start + axis.size] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert axis.starts[0] == 0 and axis.starts[-1] + axis.size == end and not any(s % 32 for s in axis.starts)
    assert axis.size == min(window, end), "a scene smaller than a window is one window"
    steps = np.diff(axis.starts)
    assert (steps[:-1] == window - overlap).all() and (steps <= window - overlap).all(), "only the last is moved back"


def test_weights_rise_smoothly_from_a_margin_of_weight_zero():
    axis = place(1000, 256, 128)
    first, inner, last = axis.weights[0], axis.weights[2], axis.weights[-1]
    assert (first[:128] == 1).all() and (last[-128:] == 1).all(), "the scene's own border"
    assert (inner[:32] == 0).all() and (inner[-32:] == 0).all() and (inner[128:-128] == 1).all()
    assert (np.diff(inner[32:96]) > 0).all() and np.diff(inner).max() < 1.6 / 64, "a cosine is at most pi / 2 as steep"
    np.testing.assert_allclose(inner, inner[::-1], atol=1e-6)


@pytest.mark.parametrize("panel", [512, 1024, 10_000])
@pytest.mark.parametrize("overlap", [32, 64])
def test_the_windows_of_a_scene_restore_it(rng, panel, overlap):
    """Every pixel is written once, in whole blocks, with the value that all windows over it agree on."""
    height, width, classes = 300, 1100, 2
    grid = Grid(height, width, 128, overlap, panel)
    scene = rng.normal(size=(classes, 320, 1120)).astype(np.float32)
    valid = np.zeros((320, 1120), bool)
    valid[40:290, 300:1000] = True
    found, seen, written = (
        np.zeros((classes, height, width)),
        np.zeros((height, width), bool),
        np.zeros((height, width)),
    )

    def write(row, col, logits, there):
        assert row % 32 == 0 and col % 512 == 0
        part = np.s_[row : row + logits.shape[1], col : col + logits.shape[2]]
        found[:, *part], seen[part] = logits, there
        written[part] += 1

    mosaic, numbers = Mosaic(grid, classes, write), []
    for strip in grid.strips():
        for window in strip:
            numbers.append(window.number)
            part = np.s_[window.row : window.row + 128, window.col : window.col + 128]
            if valid[part].any():  # the others are not even computed
                weights = window.row_weights[:, None] * window.col_weights
                mosaic.add(window, scene[:, *part] * weights, valid[part])
    mosaic.close()
    assert numbers == list(range(len(grid))) and len(grid.panels) == -(-width // panel)
    assert (written == 1).all() and np.array_equal(seen, valid[:height, :width])
    np.testing.assert_allclose(found[:, seen], scene[:, :height, :width][:, seen], atol=1e-5)


def test_memory_does_not_grow_with_the_scene():
    def held(*shape):
        mosaic = Mosaic(Grid(*shape, 128, 32, 2048), 3, lambda *part: None)
        return sum(array.nbytes for array in vars(mosaic).values() if isinstance(array, np.ndarray))

    assert held(100_000, 100_000) == held(300, 2048) == (3 * 4 + 1) * 128 * 2048


def test_bytes_of_logits():
    logits = np.log(np.array([[[0.25, 0.5, 0.1]], [[0.75, 0.5, 0.9]]], np.float32))
    bands = products_of(logits, np.array([[True, True, False]]), (CLASSES, CONFIDENCE))
    assert bands[CLASSES].tolist() == [[[1, 0, 255]]], "the first of equals"
    assert bands[CONFIDENCE].tolist() == [[[round(0.75 * 254), 127, 255]]]


def test_input_is_a_file_a_folder_a_pattern_or_a_list(tmp_path):
    for name in ("b.tif", "a.TIFF", "c.txt", "sub/a.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("sub/a.tif\n\n/elsewhere/x.tif\n")
    root = str(tmp_path)
    assert find_scenes(f"{root}/b.tif") == [f"{root}/b.tif"]
    assert find_scenes(root) == [f"{root}/a.TIFF", f"{root}/b.tif"]
    assert find_scenes(f"{root}/*/*.tif") == [f"{root}/sub/a.tif"]
    assert find_scenes(f"{root}/c.txt") == [f"{root}/sub/a.tif", "/elsewhere/x.tif"]
    for where in (f"{root}/none.tif", f"{root}/*.png"):
        with pytest.raises(UserError, match="no such file or folder"):
            find_scenes(where)


def test_maps_replace_neither_scenes_nor_each_other(tmp_path):
    found = targets(["in/a.tif", "in/b.tif"], "out", (CLASSES, CONFIDENCE))
    assert [t.path(CONFIDENCE) for t in found] == ["out/a_confidence.tif", "out/b_confidence.tif"]
    for scenes, output, message in (
        (["one/a.tif", "two/a.tif"], "out", "one/a.tif and two/a.tif would both write out/a.tif"),
        (["in/a.tif", "in/a_confidence.tif"], "out", "would both write out/a_confidence.tif"),
        (["in/a.tif"], "in/../in", "would replace a scene"),
    ):
        with pytest.raises(UserError, match=message):
            targets(scenes, output, (CLASSES, CONFIDENCE))
