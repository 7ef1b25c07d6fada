"""The workdir belongs to one config; logs survive kills and resumes."""

import json
from pathlib import Path

import pytest

from configs import default
from hfd_jax.core import logs
from hfd_jax.core.errors import WorkdirError
from hfd_jax.core.workdir import Workdir, claim, read_json, sole_run, write_json


def test_a_workdir_is_refused_for_another_config_and_names_the_fields(tmp_path):
    workdir, config = Workdir(str(tmp_path / "run")), default.get_config()
    claim(workdir, config)
    claim(workdir, config)
    config.distill.hfd.weight, config.data.crop = 3.0, 96
    with pytest.raises(
        WorkdirError, match=r"another config.*data.crop: 64 stored, 96 now; distill.hfd.weight: 17.5 stored, 3.0 now"
    ):
        claim(workdir, config)
    assert read_json(workdir.config)["distill"]["hfd"]["weight"] == 17.5


def test_fields_that_do_not_affect_the_numbers_may_differ(tmp_path):
    workdir, config = Workdir(str(tmp_path / "run")), default.get_config()
    claim(workdir, config)
    config.stage, config.parallel, config.train.log_every, config.baselines = "student", "pmap", 5, ("sar_only",)
    config.distill.kd.weight = 9.0  # of a method that the config does not use
    claim(workdir, config)
    assert read_json(workdir.config)["stage"] == "student"
    assert set(read_json(workdir.versions)) >= {"python", "jax", "flax", "optax"}


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(WorkdirError, match=r"config.json: missing; is .* the workdir of a run"):
        read_json(Workdir(str(tmp_path)).config)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WorkdirError, match=r"config.json: not valid JSON"):
        read_json(Workdir(str(tmp_path)).config)


def test_one_run_at_a_time(tmp_path):
    workdir = Workdir(str(tmp_path))
    with sole_run(workdir):
        with pytest.raises(WorkdirError, match=r"in use by another run"), sole_run(workdir):
            pass
        with pytest.raises(FileNotFoundError):  # an error inside the context is not blamed on the lock
            raise_within(workdir.root)
    with sole_run(workdir):
        pass


def raise_within(root):
    with sole_run(Workdir(root + "/..")):
        Path(root, "nothing").read_text()


def test_json_is_replaced_atomically(tmp_path):
    path = str(tmp_path / "a.json")
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}


def test_log_is_rewound_to_the_step_that_is_resumed(tmp_path):
    log = logs.MetricsLog(str(tmp_path / "metrics.jsonl"))
    for network, step in (("teacher", 10), ("student", 10), ("student", 20), ("student", 30)):
        log.write(network, step, {"loss": step / 10})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"network": "student", "st')  # an incomplete line, as left by a killed run
    log.rewind("student", 20)
    log.write("student", 25, {"loss": 9.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["network"], r["step"]) for r in rows] == [
        ("teacher", 10),
        ("student", 10),
        ("student", 20),
        ("student", 25),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (60, "1:00"), (3600, "1:00:00"), (7384.6, "2:03:05")]
)
def test_durations_are_formatted(seconds, text):
    assert logs.duration(seconds) == text


def test_progress_excludes_the_compilation(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    progress = logs.Progress(total=11)
    now[0] += 50  # the first step compiles
    progress.tick(1)
    assert progress.text(1) == "1/11"
    now[0] += 10
    assert progress.text(6) == "6/11  0.5/s  10 s left"
    resumed = logs.Progress(total=11, start=4)
    now[0] += 50
    resumed.tick(5)  # not logged
    now[0] += 2
    resumed.tick(6)
    assert resumed.text(6) == "6/11  0.5/s  10 s left"


def test_training_without_tensorflow_warns_once_and_goes_on(tmp_path, monkeypatch, caplog):
    logs.tensorboard_available.cache_clear()
    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda name: None if name == "tensorflow" else True)
    for _ in range(2):
        summaries = logs.Summaries(str(tmp_path / "tb"))
        summaries.scalars(1, {"loss": 1.0})
        summaries.images(1, lambda: pytest.fail("drawn although no summaries are written"))
        summaries.close()
    assert caplog.text.count("TensorBoard summaries are off: tensorflow not installed") == 1
    assert not (tmp_path / "tb").exists()
    logs.tensorboard_available.cache_clear()
