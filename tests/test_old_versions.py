"""A workdir and a data set written by version 0.1 still open; the run continues and evaluates."""

import json
import math
import shutil
import tarfile

import pytest
from ml_collections import ConfigDict

from configs import default
from configs import scenes as scenes_config
from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.options import option
from hfd_jax.core.workdir import Workdir, check_claim, differences, read_config
from hfd_jax.data import simulator
from hfd_jax.data.catalogue import read_dataset
from hfd_jax.distill.fitnet import FitNet
from hfd_jax.distill.registry import METHODS
from hfd_jax.experiments.report.records import read_run
from hfd_jax.models.hfdnet import HFDNet
from hfd_jax.models.registry import ARCHITECTURES
from hfd_jax.train.networks import declared_fields
from hfd_jax.train.validate import check_fields
from tests.conftest import ROOT, run_python

# The flags of the run with version 0.1.
FLAGS = {
    "data.batch_size": 4,
    "data.label_share": 0.5,
    "data.scenes.train": 8,
    "data.scenes.validation": 2,
    "data.scenes.test": 2,
    "model.width": 2,
    "optim.learning_rate": 0.003,
    "teacher.steps": 4,
    "student.steps": 4,
    "train.checkpoint_every": 2,
    "train.keep_checkpoints": 2,
    "train.log_every": 1,
    "eval.panels": 0,
    "eval.batch_size": 2,
    "baselines": "()",
    # The network of that version.
    "model.align": "flow",
    "model.stride": 4,
    "model.detail_channels": "()",
    # The distillation of that version.
    "distill.hfd.form": "standardised",
    "distill.hfd.over": "image",
    "distill.hfd.weight": 17.5,
    "distill.max_share": 1.0,
}


@pytest.fixture
def old(tmp_path):
    with tarfile.open(ROOT / "tests" / "fixtures" / "version_0_1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def launch(old, check=True):
    flags = [f"--config.{field}={value}" for field, value in (FLAGS | {"data.dir": old / "data"}).items()]
    return run_python("main.py", "--config=configs/scenes.py", f"--workdir={old / 'run'}", *flags, check=check)


def scores(old):
    rows = json.loads((old / "run" / "evaluation.json").read_text())["test"]
    return {name: row["mean_iou"] for name, row in rows.items()}


def test_a_finished_run_is_not_trained_again(old):
    before = scores(old)
    (old / "run" / "evaluation.json").unlink()
    done = launch(old)
    assert done.stdout.count("already trained for 4 steps") == 2
    # One of the 8192 pixels may change its class between processors.
    assert all(math.isclose(value, before[name], abs_tol=2e-3) for name, value in scores(old).items())


def test_an_interrupted_student_of_another_method_is_not_continued(old):
    """Its batches and its loss were others; the message names the way out, and the checkpoint stays."""
    shutil.rmtree(old / "run" / "checkpoints" / "student" / "4")
    done = launch(old, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "version 0.1 started it" in done.stderr and "--config.teacher.checkpoint=" in done.stderr
    assert CheckpointReader(str(old / "run" / "checkpoints" / "student")).steps()[-1] == 2


def test_the_report_shows_the_network_of_that_version(old):
    """Options that came later have what their absence implies, not their default."""
    run = read_run(str(old / "run"), "old", json.loads(default.get_config().to_json_best_effort()), None)
    assert (run.config.model.stride, tuple(run.config.model.detail_channels)) == (4, ())


def test_a_prepared_data_set_opens(old):
    (directory,) = (old / "data" / "scenes").glob("*/1.0.0")
    dataset = read_dataset(str(directory))
    assert dataset.sizes == {"train": 8, "validation": 2, "test": 2}
    tile = dataset.source("train")[0]
    assert tile["sar"].shape == (64, 64, 2) and tile["label"].shape == (64, 64)


def test_the_defaults_are_those_of_version_0_1(old):
    """Fields that moved into the classes of methods and networks kept their defaults."""
    stored = json.loads((old / "run" / "config.json").read_text())
    changed = {field for field, _ in differences(stored, json.loads(default.get_config().to_json_best_effort()))}
    assert changed - {"data.dir", "data.label_share", "data.batch_size"} <= {
        "distill.cache",
        "distill.min_confidence",
        *(f"data.scenes.{name}" for name in simulator.LATER),
        "data.labelled_per_batch",
        "data.unlabelled_ratio",
        "train.eval_every",
        "student.learning_rate",
        "student.width",
        # Of methods that the run does not use.
        "distill.aicsd.scaled",
        "distill.aicsd.weight",
        "distill.fakd.ramp",
        "distill.ifvd.weight",
        "distill.kd.adaptive",
        *FLAGS,
    }


def test_a_run_opens_after_a_method_and_a_network_were_added(old, monkeypatch):
    """Their options are missing from its config and count as defaults."""

    class Later(FitNet):
        method = "later"

    class Deeper(HFDNet):
        blocks: int = option(1, "blocks", above=0)

    config = ConfigDict(read_config(Workdir(str(old / "run"))))
    monkeypatch.setitem(METHODS, "later", Later)
    monkeypatch.setitem(ARCHITECTURES, "deeper", Deeper)
    with pytest.raises(KeyError):
        check_fields(config)
    workdir = Workdir(str(old / "run"))
    check_fields(ConfigDict(read_config(workdir, declared_fields())))
    today = scenes_config.get_config()
    today.update_from_flattened_dict(FLAGS | {"data.dir": "elsewhere", "baselines": (), "model.detail_channels": ()})
    check_claim(workdir, today, declared_fields())
