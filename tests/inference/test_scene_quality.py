"""Compares the maps that a trained network makes of large scenes with the truth."""

import numpy as np
import pytest

from hfd_jax.data.simulator import CLASS_NAMES, SceneOptions, simulate
from hfd_jax.evaluation.metrics import scores
from tests.conftest import run_python
from tests.runs import evaluation
from tests.scene_files import read, run_tool, write


@pytest.mark.slow
def test_a_trained_network_maps_scenes_as_well_as_tiles(tmp_path):
    """Training, tiles and a scene from the simulator: the map scores at least as well as tiles, which lack context at their borders."""
    small = {
        "stage": "student",
        "distill.method": "()",
        "data.dir": tmp_path / "data",
        "data.scenes.train": 200,
        "data.scenes.validation": 0,
        "data.scenes.test": 60,
        "model.width": 8,
        "student.steps": 300,
        "baselines": "()",
        "data.label_share": 1.0,
    }
    flags = [f"--config.{field}={value}" for field, value in small.items()]
    run_python("main.py", "--config=configs/scenes.py", f"--workdir={tmp_path / 'run'}", *flags)
    counts, wrong = np.zeros((5, 5), int), {512: [], 256: []}
    near = (np.abs(np.arange(512)[:, None] + 0.5 - np.arange(128, 512, 128)) < 8).any(1)
    near = near[:, None] | near
    for index in range(4):
        scene = simulate(10_000 + index, SceneOptions(size=512))
        path = write(tmp_path / f"{index}.tif", scene.sar)
        for window in wrong:
            output = tmp_path / f"maps{window}"
            run_tool(f"workdir={tmp_path}/run", f"input={path}", f"output={output}", f"window={window}", "overlap=128")
            found = read(output / f"{index}.tif")[0]
            wrong[window].append((found != scene.label)[near].mean())
        np.add.at(counts, (scene.label, found), 1)
    tiles = evaluation(tmp_path / "run")["student"]["mean_iou"]
    # Four scenes hold only 256 tiles from a few places, so mIoU varies by several points.
    assert scores(counts, CLASS_NAMES).mean_iou > tiles - 0.05
    assert np.mean(wrong[256]) < 1.02 * np.mean(wrong[512]), "no more errors at the borders than where there are none"
