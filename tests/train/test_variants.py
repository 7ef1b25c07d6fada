"""Variants of the run, the tools around it, and real tiles; every test here starts its own run."""

import importlib

import numpy as np
import pytest

from hfd_jax.core.checkpoint import CheckpointReader
from tests.conftest import ROOT, run_python
from tests.runs import COARSE, digests, evaluation, log_of, main

SHARED = ROOT.parent / "shared" / "data"


def test_training_learns(scenes_dir, tmp_path):
    """A short run on EO lowers the loss and beats every constant map (mIoU 0.1 to 0.15) by far."""
    flags = (
        "--config.stage=teacher",
        "--config.teacher.steps=80",
        "--config.data.label_share=1.0",
        "--config.model.width=8",
    )
    workdir = tmp_path / "run"
    main(workdir, scenes_dir, *flags, baselines=())
    log = log_of(workdir, "teacher")
    assert log[80]["loss"] < 0.5 * log[1]["loss"]
    assert evaluation(workdir)["teacher"]["mean_iou"] > 0.3


def test_bfloat16_run(scenes_dir, tmp_path):
    """Parameters, batch statistics and optimiser moments stay float32."""
    # No validation and no figures: only the steps matter here.
    flags = ("--config.dtype=bfloat16", "--config.distill.method=('hfd','kd')")
    flags += ("--config.train.eval_every=0", "--config.eval.panels=0")
    main(tmp_path / "run", scenes_dir, *flags, baselines=())
    assert all(np.isfinite(row["loss"]) for row in log_of(tmp_path / "run", "student").values())
    reader = CheckpointReader(str(tmp_path / "run" / "checkpoints" / "student"))
    dtypes = {entry["dtype"] for entry in reader.record(reader.choose("latest"))["arrays"].values()}
    assert dtypes == {"float32", "int32"}, "int32: counters"


def test_ablations_are_the_same_code(scenes_dir, tmp_path):
    """Config fields alone turn off alignment and distillation and turn on context."""
    flags = (
        "--config.model.align=none",
        "--config.model.context=True",
        "--config.distill.method=()",
        "--config.stage=student",
    )
    text = main(tmp_path / "run", scenes_dir, *flags, baselines=()).stdout
    assert "student without distillation (SAR): 6 labelled tiles" in text
    paths = " ".join(digests(tmp_path / "run", "student"))
    assert "/context/" in paths and "/flow_" not in paths


TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if "def make_parser" in path.read_text())


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_has_a_help(tool):
    text = importlib.import_module(f"tools.{tool}").make_parser().format_help()
    assert f"usage: python -m tools.{tool}" in text and f"  python -m tools.{tool} " in text
    assert (ROOT / "README.md").read_text().count(f"tools.{tool}") > 0


def test_help_needs_no_workdir():
    assert "usage: python -m tools.compare" in run_python("-m", "tools.compare", "--help").stdout


def test_prepare_tool_writes_scenes_and_prints_how_to_use_them(tmp_path):
    flags = ("--dataset=scenes", "--train=4", "--validation=0", "--test=2", "--looks=4", f"--data_dir={tmp_path}")
    text = run_python("-m", "tools.prepare_data", *flags).stdout
    assert "tiles: 4 train, 2 test" in text and "--config.data.name=scenes/64px" in text
    done = run_python(
        "-m", "tools.prepare_data", "--dataset=scenes", "--looks=-1", f"--data_dir={tmp_path}", check=False
    )
    assert done.returncode == 1 and "error: scenes.looks is -1.0; expected above 0" in done.stderr


@pytest.mark.skipif(not (SHARED / "terramind").is_dir(), reason="real Sentinel-1/2 tiles are not here")
def test_real_tiles_train_and_evaluate(tmp_path):
    flags = (
        "--dataset=folder",
        "--description=configs/datasets/terramind.json",
        f"--raw_dir={SHARED / 'terramind'}",
        f"--data_dir={tmp_path}",
    )
    text = run_python("-m", "tools.prepare_data", *flags).stdout
    assert "tiles: 2 train, 2 test" in text and "sar VV: mean -11.1" in text
    small = {
        "data.name": "folder/terramind",
        "data.dir": tmp_path,
        "model.width": 4,
        **COARSE,
        "baselines": "()",
        "teacher.steps": 2,
        "student.steps": 2,
    }
    done = run_python(
        "main.py",
        "--config=configs/folder.py",
        f"--workdir={tmp_path / 'run'}",
        *[f"--config.{k}={v}" for k, v in small.items()],
    )
    rows = evaluation(tmp_path / "run")
    assert set(rows) == {"teacher", "student"}
    # Two right halves of 224 x 112 pixels; one of them is labelled flooded vegetation, which is ignored.
    assert all(row["pixels"] + row["ignored"] == 2 * 224 * 112 for row in rows.values())
    assert "HFD student (SAR)" in done.stdout
