"""Checks, prepares, trains and evaluates each public data set."""

import json

import numpy as np
import pytest

from hfd_jax.data.sen12ms import split_of
from tests.conftest import run_python
from tests.runs import COARSE
from tests.trees import Sen12msTree, Spacenet6Tree, WhuTree, write_raster

SEN12MS_SCENES = [
    "ROIs1158_spring/s1_63",
    "ROIs1868_summer/s1_8",
    "ROIs2017_winter/s1_1",
    next(f"ROIs1970_fall/s1_{n}" for n in range(1, 100) if split_of(f"ROIs1970_fall/s1_{n}") == "validation"),
]
TREES = {
    "spacenet6": lambda root: Spacenet6Tree(root, [591640 + 452 * k + 10 for k in range(10)]),
    "sen12ms": lambda root: Sen12msTree(root, SEN12MS_SCENES),
    "whu_opt_sar": lambda root: WhuTree(root, ["NH49E001010", "NH49E001011", "NH49E001014"]),
}
NAMES = {"spacenet6": "spacenet6/ten_fold_0", "sen12ms": "sen12ms/simplified", "whu_opt_sar": "whu_opt_sar/scenes"}
SMALL = {
    "dtype": "float32",
    "model.depth": 18,
    "model.width": 4,
    **COARSE,
    "data.crop": 32,
    "data.batch_size": 4,
    "data.workers": 0,
    "teacher.steps": 2,
    "student.steps": 2,
    "train.eval_every": 0,
    "baselines": "()",
    "eval.batch_size": 4,
    "eval.window": 32,
    "distill.hfd.taps": "('C3','C4','A')",
}


# The third one has reader tests of its own and trains like the others.
@pytest.mark.parametrize("name", ["spacenet6", "sen12ms", pytest.param("whu_opt_sar", marks=pytest.mark.slow)])
def test_prepare_and_train(name, tmp_path):
    TREES[name](tmp_path / "raw")
    data = tmp_path / "data"
    flags = (f"--dataset={name}", f"--raw_dir={tmp_path / 'raw'}", f"--data_dir={data}", "--workers=1")
    text = run_python("-m", "tools.prepare_data", *flags).stdout
    assert f"--config.data.name={NAMES[name]}" in text and "caution" not in text
    assert "\nlabelled training pixels: " in text
    run_python(
        "main.py",
        f"--config=configs/{name}.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.dir={data}",
        # Both stages of one data set; the student's step takes long to compile.
        f"--config.stage={'all' if name == 'sen12ms' else 'teacher'}",
        *[f"--config.{field}={value}" for field, value in SMALL.items()],
    )
    rows = json.loads((tmp_path / "run" / "evaluation.json").read_text())["test"]
    assert set(rows) == ({"teacher", "student"} if name == "sen12ms" else {"teacher"})
    if name == "sen12ms":
        evaluate_on_dfc2020(tmp_path)
    assert all(np.isfinite(row["mean_iou"]) and row["pixels"] > 0 for row in rows.values())


def evaluate_on_dfc2020(folder):
    Sen12msTree(folder / "dfc", ["ROIs0000_validation/s1_validation", "ROIs0000_test/s1_0"], ("s1", "s2", "dfc"))
    for classes in ("simplified", "dfc2020"):
        flags = ("--dataset=dfc2020", f"--classes={classes}", f"--raw_dir={folder / 'dfc'}", "--workers=1")
        text = run_python("-m", "tools.prepare_data", *flags, f"--data_dir={folder / 'data'}").stdout
        assert "\nlabelled pixels: forest" in text, "DFC2020 has no training split"
    evaluate = ("-m", "tools.evaluate", f"--workdir={folder / 'run'}", "--panels=1")
    run_python(*evaluate, "--data=dfc2020/simplified")
    everything = json.loads((folder / "run" / "evaluation.json").read_text())
    row = everything["dfc2020_simplified_test"]["student"]
    assert "test" in everything and row["pixels"] + row["ignored"] == 2 * 32 * 32
    assert (folder / "run" / "figures" / "panel_dfc2020_simplified_test.png").exists()
    done = run_python(*evaluate, "--data=dfc2020/dfc2020", check=False)
    assert done.returncode == 1 and "was trained with class_names ('forest', 'shrubland'" in done.stderr


def test_check_data_finds_all_problems_and_preparation_can_skip_bad_tiles(tmp_path):
    raw = tmp_path / "raw"
    tree = Spacenet6Tree(raw, [591640 + 452 * k + 10 for k in range(9)] + [595200, 595400])
    empty, moved, lone = tree.names[1], tree.names[2], tree.names[3]
    origin = (591640 + 452 + 10, 5750000.0)
    write_raster(tree.file("SAR-Intensity", empty), np.zeros((60, 60, 4), np.float32), origin, 7.5)
    wrong = (591640 + 2 * 452 + 10 + 0.6 * 7.5, 5750000.0)
    write_raster(tree.file("PS-RGB", moved), tree.images(2)[1][..., :3], wrong, 7.5)
    tree.file("PS-RGB", lone).unlink()
    check = ("-m", "tools.check_data", raw, "--splitting=baseline", f"--output={tmp_path / 'out'}", "--workers=1")
    done = run_python(*check, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    text = (tmp_path / "out" / "summary.txt").read_text()
    assert text in done.stdout
    assert "spacenet6: 11 tiles (10 train, 1 validation)" in text
    bad = (tmp_path / "out" / "bad_tiles.txt").read_text().splitlines()
    assert len(bad) == 2 and "0.60 pixels off the grid" in text and moved in bad[0] + bad[1] and lone in bad[0] + bad[1]
    assert f"train: {empty}: sar is empty (no valid pixel)" in text
    assert f"{tree.names[9]} (train) and {tree.names[10]} (validation)" in text, "both cover 595400 to 595650"
    assert "building" in text and (tmp_path / "out" / "contact_sheet.png").stat().st_size > 10_000
    prepare = ("-m", "tools.prepare_data", "--dataset=spacenet6", f"--raw_dir={raw}", "--splitting=baseline")
    prepare += (f"--data_dir={tmp_path / 'data'}", "--workers=1")
    refused = run_python(*prepare, check=False)
    assert refused.returncode == 1 and "0.60 pixels off the grid" in refused.stderr
    text = run_python(*prepare, "--skip_bad").stdout
    assert "tiles: 8 train, 1 validation" in text and "left out: 2 bad tile(s), listed in" in text
    assert "show the same ground" in text
    skipped = tmp_path / "data" / "spacenet6" / "baseline" / "1.0.0" / "skipped.txt"
    assert len(skipped.read_text().splitlines()) == 2


def test_a_folder_that_is_not_a_data_set_is_named(tmp_path):
    done = run_python("-m", "tools.check_data", tmp_path, check=False)
    assert done.returncode == 1 and "not the layout of a known data set; name it with --dataset" in done.stderr
    done = run_python("-m", "tools.prepare_data", "--dataset=spacenet6", check=False)
    assert done.returncode == 1 and "--dataset=spacenet6 needs --raw_dir" in done.stderr


def test_benchmark_of_preparation_leaves_nothing_behind(tmp_path):
    Sen12msTree(tmp_path / "raw", SEN12MS_SCENES)
    flags = ("--what=prepare", "--dataset=sen12ms", f"--raw_dir={tmp_path / 'raw'}", "--limit=2", "--workers=1")
    text = run_python("-m", "tools.benchmark", *flags, env={"TMPDIR": str(tmp_path)}).stdout
    assert "plain loop: " in text and "1 process(es): " in text and text.count("tiles/s") == 2
    left = [path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "raw" not in path.parents]
    assert not left
    done = run_python("-m", "tools.benchmark", "--what=prepare", check=False)
    assert done.returncode == 1 and "--what=prepare needs --dataset and --raw_dir" in done.stderr
