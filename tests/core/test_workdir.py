"""The workdir belongs to one config; logs survive kills and resumes."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest

from configs import default
from hfd_jax.core import logs, parallel, workdir
from hfd_jax.core.errors import ConfigError, WorkdirError
from hfd_jax.core.workdir import Workdir, claim, read_json, sole_run, write_json
from hfd_jax.train import run


def test_a_workdir_is_refused_for_another_config_and_names_the_fields(tmp_path):
    workdir, config = Workdir(str(tmp_path / "run")), default.get_config()
    claim(workdir, config)
    claim(workdir, config)
    config.distill.hfd.weight, config.data.crop = 3.0, 96
    with pytest.raises(
        WorkdirError, match=r"a different config.*data.crop: 64 stored, 96 now; distill.hfd.weight: 2.0 stored, 3.0 now"
    ):
        claim(workdir, config)
    assert read_json(workdir.config)["distill"]["hfd"]["weight"] == 2.0


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


def test_without_locks_a_run_begins_with_a_warning(tmp_path, monkeypatch, caplog):
    """Lustre without -o flock, some NFS."""

    def flock(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with sole_run(Workdir(str(tmp_path))):
        pass
    assert "file system without locks (No locks available)" in caplog.text


def test_the_digest_of_the_program_depends_on_code_and_packages(monkeypatch):
    one = workdir.program_digest()
    assert one == workdir.program_digest()
    monkeypatch.setattr(workdir, "package_versions", lambda: {"jax": "0"})
    assert workdir.program_digest() != one


def test_processes_with_other_code_are_refused(monkeypatch):
    monkeypatch.setattr(run, "same_everywhere", lambda number: False)
    with pytest.raises(ConfigError, match="do not run the same program"):
        run.check_same_program()


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


def test_a_log_on_a_full_disk_waits_for_room(tmp_path, caplog):
    """A limit on the size of files cuts a line short, as a full disk does."""
    path = tmp_path / "metrics.jsonl"
    log = logs.MetricsLog(str(path))
    log.write("teacher", 1, {"loss": 1.0})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        log.write("teacher", 2, {"loss": 2.0})
        log.write("teacher", 3, {"loss": 3.0})
        assert path.read_bytes() == before, "no part of a line"
        with pytest.raises(WorkdirError, match=r"metrics.jsonl: cannot be written"):
            log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.text.count("its lines wait") == 1
    log.write("teacher", 4, {"loss": 4.0})
    log.close()
    assert [row["step"] for row in logs.read_log(str(path))[0]] == [1, 2, 3, 4]


def test_summaries_that_cannot_be_written_are_turned_off(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logs, "tensorboard_available", lambda: False)  # TensorFlow takes seconds
    summaries = logs.Summaries(str(tmp_path))

    class Full:
        def write_scalars(self, step, values):
            raise RuntimeError("No space left on device")

    summaries._writer = Full()
    summaries.scalars(1, {"loss": 1.0})
    summaries.scalars(2, {"loss": 1.0})
    summaries.images(3, lambda: pytest.fail("drawn although no summaries are written"))
    summaries.close()
    assert caplog.text.count("TensorBoard summaries are off: No space left on device") == 1


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


def test_without_a_home_folder_nothing_is_cached(tmp_path, monkeypatch, caplog):
    """expanduser leaves the "~" of a user that the system does not know; no folder of that name is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(parallel.os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(parallel.jax.config, "update", lambda *_: pytest.fail("cached"))
    monkeypatch.setattr(type(parallel.jax.config), "jax_compilation_cache_dir", None, raising=False)
    parallel.enable_compilation_cache()
    assert "compiled programs are not cached (no home folder)" in caplog.text and not list(tmp_path.iterdir())
