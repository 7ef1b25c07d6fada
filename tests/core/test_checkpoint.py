"""Which checkpoints are kept and restored; a damaged one never becomes a result."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfd_jax.core.checkpoint import CheckpointReader, Checkpoints, DamagedError
from hfd_jax.core.errors import CheckpointError
from hfd_jax.train.state import TrainState
from tests.conftest import ROOT, python_environment, run_python
from tests.damage import empty, flip_bit, hurt, truncate

# Reads still in progress when a restore fails report a closed event loop.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(step=0):
    # Random numbers do not compress: the largest file is all array data, so that a flipped bit in it matters.
    model = {"kernel": jax.random.normal(jax.random.key(step), (300, 4)), "bias": jnp.arange(4.0)}
    return TrainState(
        jnp.int32(step),
        {"model": model, "distiller": {"w": jnp.ones(2)}},
        {"model": {"mean": jnp.full(5, 2.0 * step)}, "distiller": {}},
        ({"mu": jnp.full(7, 3.0)},),
        skipped=jnp.int32(0),
        bad_steps=jnp.int32(0),
    )


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def save_all(folder, scores, keep=2):
    checkpoints = Checkpoints(str(folder), keep)
    for step, score in scores.items():
        checkpoints.save(step, make_state(step), {"network": "student"}, score)
    checkpoints.close()
    return CheckpointReader(str(folder))


def files(folder, step):
    found = [p for p in Path(folder, str(step)).rglob("*") if p.is_file() and p.stat().st_size]
    return sorted(found, key=lambda p: p.stat().st_size)


def test_latest_and_best_are_kept(tmp_path):
    reader = save_all(tmp_path / "student", {10: 0.5, 20: 0.9, 30: 0.2, 40: 0.3, 50: None})
    assert reader.steps() == [20, 40, 50]
    assert reader.choose("best") == 20 and reader.choose("latest") == 50


def test_best_is_remembered_by_a_new_process(tmp_path):
    save_all(tmp_path / "student", {10: 0.9, 20: 0.1})
    reader = save_all(tmp_path / "student", {30: 0.2, 40: 0.3})
    assert reader.steps() == [10, 30, 40] and reader.choose("best") == 10


def test_whole_state_and_parameters_alone_are_restored(tmp_path):
    save_all(tmp_path / "student", {10: None})
    checkpoints = Checkpoints(str(tmp_path / "student"))
    state, step = checkpoints.restore_latest(abstract(make_state()))
    assert step == 10 and equal(state, make_state(10))
    part = {"params": {"model": abstract(make_state()).params["model"]}}
    assert equal(checkpoints.restore(10, part), {"params": {"model": make_state(10).params["model"]}})
    checkpoints.close()


def test_a_missing_checkpoint_is_an_error(tmp_path):
    checkpoints = Checkpoints(str(tmp_path / "student"))
    assert checkpoints.restore_latest(abstract(make_state())) is None
    checkpoints.close()
    with pytest.raises(CheckpointError, match="contains no checkpoint"):
        checkpoints.choose("latest")
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        CheckpointReader(str(tmp_path / "nowhere"))


def test_best_without_scores_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="contains no scored checkpoint"):
        save_all(tmp_path / "student", {10: None}).choose("best")


def test_other_network_is_named_by_path_and_shape(tmp_path):
    reader = save_all(tmp_path / "student", {10: None})
    wanted = abstract({"params": {"model": {"kernel": jnp.ones((3, 5)), "gain": jnp.ones(1)}}})
    with pytest.raises(
        CheckpointError,
        match=r"params/model/gain: expected \(1,\), found nothing; params/model/kernel: expected \(3, 5\), found \(300, 4\)",
    ):
        reader.restore(10, wanted)


@pytest.mark.parametrize("damage", [truncate, empty, flip_bit, Path.unlink])
def test_damaged_arrays_fall_back_to_the_good_checkpoint(tmp_path, damage, caplog):
    folder = tmp_path / "student"
    save_all(folder, {10: None, 20: None})
    damage(files(folder / "20", "state")[-1])  # the largest file: array data
    checkpoints = Checkpoints(str(folder))
    with pytest.raises(DamagedError, match="/20: "):
        checkpoints.restore(20, abstract(make_state()))
    state, step = checkpoints.restore_latest(abstract(make_state()))
    assert step == 10 and equal(state, make_state(10))
    assert checkpoints.steps() == [10]
    assert [p.name.rsplit("-", 1)[0] for p in (tmp_path / "damaged").iterdir()] == ["student-20"]
    checkpoints.save(20, make_state(20), {})  # saving continues, even at the step that was damaged
    checkpoints.close()
    assert CheckpointReader(str(folder)).steps() == [10, 20]


@pytest.mark.parametrize("times", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_damage_becomes_a_result(tmp_path, times):
    """With any file damaged, metadata included, the restored state equals the one saved at this or the previous step."""
    rng, caught = np.random.default_rng(times), []
    whole = save_all(tmp_path / "whole", {10: None, 20: None})
    for number in range(times):
        folder = tmp_path / str(number) / "student"
        shutil.copytree(tmp_path / "whole", folder)
        path = files(folder, 20)[rng.integers(len(files(folder, 20)))]
        what = f"{hurt(path, rng)} {path.relative_to(folder)}"
        with contextlib.suppress(DamagedError):  # no other error is accepted
            CheckpointReader(str(folder)).verify(20)
        checkpoints = Checkpoints(str(folder))
        state, step = checkpoints.restore_latest(abstract(make_state()))
        assert equal(state, make_state(step)), what
        assert checkpoints.record(step) == whole.record(step), what
        checkpoints.verify(step)
        caught += [what] * (step == 10)
        checkpoints.close()
    print(f"{times} times damaged, {len(caught)} caught; the others changed nothing that is restored")
    assert len(caught) > times / 4, "much of it matters"


def test_damaged_record_counts_as_damage(tmp_path):
    folder = tmp_path / "student"
    save_all(folder, {10: 0.5, 20: 0.7})
    for path in files(folder / "20", "record"):
        truncate(path)
    checkpoints = Checkpoints(str(folder))
    assert checkpoints.restore_latest(abstract(make_state()))[1] == 10
    checkpoints.close()


def test_a_best_checkpoint_whose_score_is_damaged_is_neither_passed_over_nor_removed(tmp_path):
    folder = tmp_path / "student"
    reader = save_all(folder, {10: 0.9, 20: 0.2, 30: 0.3})
    for path in files(folder / "10", "record"):
        flip_bit(path)
    with pytest.raises(DamagedError, match="/10: "):
        reader.choose("best")
    save_all(folder, {40: 0.4, 50: 0.1})
    assert reader.steps() == [10, 40, 50], "its files may still be repaired"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        PermissionError(13, "no"),
        ValueError("RESOURCE_EXHAUSTED: too many open files"),
        ValueError("[external/gloo] Connection closed by peer"),
    ],
)
def test_trouble_of_the_machine_is_no_damage(tmp_path, monkeypatch, error):
    """An intact checkpoint is not moved when memory runs out or a file server is unreachable."""
    save_all(tmp_path / "student", {10: None, 20: None})
    checkpoints = Checkpoints(str(tmp_path / "student"))

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointHandler.restore", fail)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore_latest(abstract(make_state()))
    assert not isinstance(caught.value, DamagedError) and checkpoints.steps() == [10, 20]
    checkpoints.close()


def test_when_nothing_is_good_nothing_is_moved(tmp_path):
    folder = tmp_path / "student"
    save_all(folder, {10: None, 20: None})
    for step in (10, 20):
        flip_bit(files(folder / str(step), "state")[-1])
    checkpoints = Checkpoints(str(folder))
    with pytest.raises(CheckpointError, match="no intact checkpoint is left, nothing was changed: .*/20: .*/10: "):
        checkpoints.restore_latest(abstract(make_state()))
    assert checkpoints.steps() == [10, 20]
    checkpoints.close()


def test_state_may_be_donated_right_after_save(tmp_path):
    """Saving continues in the background while the next step overwrites the buffers."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 + 1, s), donate_argnums=0)
    state = {"w": jnp.arange(2_000_000.0)}
    expected = np.asarray(state["w"]).copy()
    checkpoints = Checkpoints(str(tmp_path / "student"))
    checkpoints.save(1, state, {})
    for _ in range(5):
        state = step(state)
    checkpoints.close()
    restored = CheckpointReader(str(tmp_path / "student")).restore(1, abstract({"w": expected}))
    np.testing.assert_array_equal(restored["w"], expected)


def test_saved_on_two_devices_verified_on_one(tmp_path):
    """A run finished on two devices is verified on one without a warning."""
    save = (
        "import sys, jax, numpy as np; from hfd_jax.core.checkpoint import Checkpoints; from hfd_jax.core.parallel import Jit;"
        "c = Checkpoints(sys.argv[1]); c.save(3, Jit().replicate({'w': np.arange(8.0)}), {}); c.close()"
    )
    verify = (
        "import sys; from hfd_jax.core.checkpoint import CheckpointReader;"
        "CheckpointReader(sys.argv[1]).verify(3); print('whole')"
    )
    folder = tmp_path / "student"
    run_python("-c", save, folder, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=2"})
    done = run_python("-W", "error::UserWarning", "-c", verify, folder)
    assert done.stdout == "whole\n" and "Warning" not in done.stderr


@pytest.mark.parametrize(
    "name",
    ["run[1]", "run*", "r?n", "a b", "50%", "{step}", "x#y", "a:b", "s3:", "ümlaut", "new\nline", "~me", "x~", "a|b"],
)
def test_a_folder_may_have_any_name(tmp_path, name):
    (tmp_path / "run1").mkdir()  # matches some of the names as a pattern
    reader = save_all(tmp_path / name / "student", {10: None, 20: 0.5})
    assert equal(reader.restore(20, abstract(make_state())), make_state(20))
    reader.verify(10)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gs://bucket/run", "is a URL"),
        ("s3://bucket/run", "is a URL"),
        ("/s3/run", "address of a cloud store"),
        ("x/gs:/run", "address of a cloud store"),
        ("a\\b", "contains a backslash"),
        ("a\udcfcb", "not valid UTF-8"),
    ],
)
def test_a_folder_whose_checkpoints_could_not_be_read_is_refused(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    for open_folder in (Checkpoints, CheckpointReader):
        with pytest.raises(CheckpointError, match=message):
            open_folder(path)
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_is_read_back_before_an_older_one_goes(tmp_path):
    folder = tmp_path / "student"
    save_all(folder, {10: None, 20: None})
    checkpoints = Checkpoints(str(folder), keep=1)
    verify = checkpoints.verify

    def damage_before_reading(step):
        flip_bit(files(folder / "30", "state")[-1])
        verify(step)

    checkpoints.verify = damage_before_reading
    checkpoints.save(30, make_state(30), {})
    with pytest.raises(CheckpointError, match=r"/30 does not read back .*; checkpoints kept: 10, 20"):
        checkpoints.close()
    whole = Checkpoints(str(folder), keep=1)
    assert whole.restore_latest(abstract(make_state()))[1] == 20
    whole.save(30, make_state(30), {})
    whole.close()
    assert sorted(os.listdir(folder)) == ["30"]


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
    now = iter(range(10**9, 0, -100))
    monkeypatch.setattr("time.time", lambda: float(next(now)))
    reader = save_all(tmp_path / "student", {10: None, 20: None, 30: None})
    assert reader.steps() == [20, 30] and reader.choose("latest") == 30


FILL_UP = """
import os, sys
import numpy as np
from hfd_jax.core.checkpoint import CheckpointReader, Checkpoints
from hfd_jax.core.errors import CheckpointError

place, rng = sys.argv[1], np.random.default_rng(0)
state = lambda step: {"w": rng.normal(size=60000).astype(np.float32), "step": np.int32(step)}
checkpoints = Checkpoints(place + "/student", keep=5)
for step in (1, 2):
    checkpoints.save(step, state(step), {})
checkpoints.wait()
filler = os.open(place + "/filler", os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(filler, b"x" * 4096)
except OSError as error:
    print("full:", error.strerror)
os.close(filler)
try:
    checkpoints.save(3, state(3), {})
    checkpoints.close()
except CheckpointError as error:
    print("error:", error)
os.remove(place + "/filler")
"""

GO_ON = """
import os, sys
import numpy as np
from hfd_jax.core.checkpoint import CheckpointReader, Checkpoints

place, rng = sys.argv[1], np.random.default_rng(1)
checkpoints = Checkpoints(place + "/student", keep=5)
checkpoints.save(3, {"w": rng.normal(size=60000).astype(np.float32), "step": np.int32(3)}, {})
checkpoints.close()
reader = CheckpointReader(place + "/student")
for step in reader.steps():
    reader.verify(step)
print("whole:", reader.steps())
print("there:", sorted(os.listdir(place + "/student")))
"""


def test_full_disk_leaves_earlier_checkpoints_and_saving_goes_on(tmp_path):
    """Fills a file system of one megabyte, mounted in a user name space that needs no privileges."""
    enter = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*enter, "true"], check=False).returncode:
        pytest.skip("this system allows no user name spaces")
    python = [f"{sys.executable} -c {shlex.quote(script)} {tmp_path}" for script in (FILL_UP, GO_ON)]
    done = subprocess.run(
        [*enter, "sh", "-c", " && ".join([f"mount -t tmpfs -o size=1m tmpfs {tmp_path}", *python])],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env=python_environment(PYTHONPATH=str(ROOT)),
        check=False,
    )
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert lines["full"] == "No space left on device", done.stderr
    assert "/student/3 could not be written" in lines["error"] and "No space left on device" in lines["error"]
    assert lines["error"].endswith("checkpoints kept: 1, 2")
    assert lines["whole"] == "[1, 2, 3]" and lines["there"] == "['1', '2', '3']", "nothing half-written is left"
    assert "Traceback" not in done.stderr
