"""A complete run as a user starts it, with a smaller version of configs/scenes.py."""

import json
import shutil

import numpy as np
import pytest
from scipy import ndimage

from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.errors import CheckpointError
from hfd_jax.core.workdir import Workdir, sole_run
from hfd_jax.data.integrity import write_digests
from tests import runs
from tests.conftest import FAST_COMPILE, run_python
from tests.runs import NETWORKS, STEPS, damage, digests, evaluation, log_of, rows_of


def main(workdir, data_dir, *more, **kwargs):
    """The run of these tests, which draws panels as well."""
    return runs.main(workdir, data_dir, "--config.eval.panels=2", *more, **kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scenes, scenes_dir):
    """A finished run: (workdir, its output)."""
    workdir = tmp_path_factory.mktemp("runs") / "quick"
    done = main(workdir, scenes_dir)
    return workdir, done.stdout


def test_all_outputs_are_written(finished):
    workdir, text = finished
    for name in ("config.json", "versions.json", "metrics.jsonl", "evaluation.json"):
        assert (workdir / name).stat().st_size > 0
    for network in NETWORKS:
        assert CheckpointReader(str(workdir / "checkpoints" / network)).steps() == [3, 6]
        (events,) = (workdir / "tensorboard" / network).glob("events*")
        assert b"panel_validation" in events.read_bytes() and b"confusion_validation" in events.read_bytes()
    (events,) = (workdir / "tensorboard" / "evaluation").glob("events*")
    assert b"panel_test" in events.read_bytes() and b"confusion_test" in events.read_bytes()
    timing = [json.loads(line) for line in (workdir / "timing.jsonl").read_text().splitlines()]
    assert {row["network"] for row in timing} == set(NETWORKS) and all(row["steps_per_second"] > 0 for row in timing)
    for figure in ("panel_test.png", "confusion_test.png"):
        assert (workdir / "figures" / figure).read_bytes().startswith(b"\x89PNG")
    for title in (
        "teacher (EO)",
        "SAR-only student",
        "student from teacher's weights",
        "HFD student (SAR)",
        "mIoU",
        "kappa",
    ):
        assert title in text
    assert "6 labelled + 18 unlabelled tiles" in text, "a quarter of 24 labels; the HFD student sees the rest as well"
    assert " left" in text, "progress tells the time left"


def test_scores_are_complete_and_every_pixel_is_counted(finished):
    rows = evaluation(finished[0])
    assert set(rows) == set(NETWORKS)
    for row in rows.values():
        assert row["pixels"] + row["ignored"] == 10 * 64 * 64
        assert np.sum(row["confusion_matrix"]) == row["pixels"]
        assert row["step"] == STEPS and 0 < row["mean_iou"] < 1


def test_log_has_every_term_with_its_share(finished):
    student = log_of(finished[0], "student")
    assert list(student) == [1, 2, 4, 6]
    assert {"ce", "dice", "hfd", "share_hfd", "hfd_C3", "grad_norm", "learning_rate"} <= set(student[6])
    assert "hfd" not in log_of(finished[0], "sar_only")[6]


def test_the_student_checkpoint_has_no_teacher_and_knows_its_data(finished):
    reader = CheckpointReader(str(finished[0] / "checkpoints" / "student"))
    record = reader.record(STEPS)
    assert record["bands"]["sar"] == ["VV", "VH"] and record["facts"]["class_names"][4] == "buildings"
    assert len(record["inputs"]["sar"]["mean"]) == 2 and record["versions"]["jax"]
    roots = {"/".join(path.split("/")[:2]) for path in record["arrays"] if path.startswith("params")}
    assert roots == {"params/model", "params/distiller"}
    assert record["score"] is not None


def test_a_second_start_trains_nothing_and_prints_the_same_scores(finished, scenes_dir):
    workdir, text = finished
    before = evaluation(workdir)
    again = main(workdir, scenes_dir).stdout
    assert again.count("already trained for 6 steps") == 4
    assert evaluation(workdir) == before
    assert text[text.index("evaluating") :] == again[again.index("evaluating") :]


def test_a_run_that_diverges_stops_and_names_what_is_left(scenes_dir, tmp_path):
    flags = ("--config.optim.learning_rate=1e30", "--config.optim.warmup=0.0", "--config.train.max_bad_steps=3")
    done = main(tmp_path / "run", scenes_dir, *flags, "--config.train.eval_every=0", baselines=(), check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: teacher: 3 steps in a row (config.train.max_bad_steps) were skipped" in done.stderr
    assert "step 3: ce, dice not finite; tiles scene_" in done.stderr
    # The first update leaves parameters of 1e30. The checkpoint due at step 3 is not written, because that step is
    # skipped and the checkpoint could displace earlier ones.
    assert CheckpointReader(str(tmp_path / "run" / "checkpoints" / "teacher")).steps() == []
    assert "There is no checkpoint yet" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["skipped"]) for row in rows] == [(1, 0), (2, 1), (4, 3)]
    assert [fault["step"] for fault in rows[2]["faults"]] == [3, 4] and len(rows[2]["faults"][0]["tiles"]) == 8


def test_a_second_start_is_refused_while_a_run_is_at_work(finished, scenes_dir):
    before = (finished[0] / "config.json").read_bytes()
    with sole_run(Workdir(str(finished[0]))):
        done = main(finished[0], scenes_dir, "--config.train.log_every=3", check=False)
    assert done.returncode == 1 and "in use by another run" in done.stderr and "Traceback" not in done.stderr
    assert (finished[0] / "config.json").read_bytes() == before


def test_another_config_is_refused(finished, scenes_dir):
    done = main(finished[0], scenes_dir, "--config.distill.hfd.weight=2.5", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "created with a different config" in done.stderr and "distill.hfd.weight: 2.0 stored, 2.5 now" in done.stderr
    way_out = f"--workdir=NEW_FOLDER --config.teacher.checkpoint={finished[0]}/checkpoints/teacher"
    assert way_out in done.stderr, "the teacher does not depend on this field"
    done = main(finished[0], scenes_dir, "--config.student.steps=7", "--config.optim.learning_rate=0.1", check=False)
    assert "student.steps: 6 stored, 7 now" in done.stderr and "NEW_FOLDER" not in done.stderr, (
        "the teacher depends on it"
    )


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_resumed_run_is_bit_equal(finished, scenes_dir, tmp_path, network):
    """Repeats steps 4 to 6 from the checkpoint of step 3; parameters, optimiser, statistics and log are equal."""
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / network / str(STEPS))
    done = main(workdir, scenes_dir)
    assert "steps 3 to 6" in done.stdout
    # Progress bars aside, a healthy run has nothing to say on stderr.
    assert [line for line in done.stderr.splitlines() if "%|" not in line and line.strip()] == []
    assert digests(workdir, network) == digests(finished[0], network)
    # The checkpoint of step 3 falls between two log lines; the line of step 4 still has the mean of steps 3 and 4.
    assert rows_of(workdir, network) == rows_of(finished[0], network)
    assert evaluation(workdir) == evaluation(finished[0])


def test_stages_one_by_one_equal_all_at_once(finished, scenes_dir, tmp_path):
    workdir = tmp_path / "stages"
    main(workdir, scenes_dir, "--config.stage=teacher")
    assert not (workdir / "checkpoints" / "student").exists()
    main(workdir, scenes_dir, "--config.stage=student")
    for network in NETWORKS:
        assert digests(workdir, network) == digests(finished[0], network)


def test_damaged_last_checkpoint_is_trained_again(finished, scenes_dir, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    damage(workdir / "checkpoints" / "student" / str(STEPS))
    # Metadata too: an unreadable checkpoint is treated like a missing one.
    path = workdir / "checkpoints" / "sar_only" / str(STEPS) / "state" / "_METADATA"
    path.write_bytes(path.read_bytes()[:100])
    done = main(workdir, scenes_dir)
    assert done.stdout.count("steps 3 to 6") == 2 and done.stderr.count("damaged checkpoint") >= 2
    for network in ("student", "sar_only"):
        assert digests(workdir, network) == digests(finished[0], network)
    assert evaluation(workdir) == evaluation(finished[0])


def test_changed_data_or_teacher_is_not_continued(finished, scenes_dir, tmp_path):
    workdir, data = tmp_path / "copy", tmp_path / "data"
    shutil.copytree(finished[0], workdir)
    shutil.copytree(scenes_dir, data)
    shutil.rmtree(workdir / "checkpoints" / "student" / str(STEPS))
    (metadata,) = data.rglob("metadata.json")
    text = json.loads(metadata.read_text())
    text["statistics"]["sar"]["mean"][0] = -99.0
    metadata.write_text(json.dumps(text))
    write_digests(str(metadata.parent))  # other data, not damage
    done = main(workdir, data, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "its data or its teacher have changed. inputs.sar.mean" in done.stderr and "-99.0" in done.stderr
    shutil.rmtree(workdir / "checkpoints" / "teacher" / str(STEPS))
    done = main(workdir, scenes_dir, "--config.stage=student", check=False)
    assert "checkpoints/teacher has steps 3; this run needs 6" in done.stderr


def test_a_student_needs_a_teacher_before_anything_is_trained(scenes_dir, tmp_path):
    done = main(tmp_path / "run", scenes_dir, "--config.stage=student", check=False)
    assert done.returncode == 1 and "run --config.stage=teacher (or all) first" in done.stderr
    assert not (tmp_path / "run").exists()


def test_teacher_from_another_run(finished, scenes_dir, tmp_path):
    teacher = f"--config.teacher.checkpoint={finished[0] / 'checkpoints' / 'teacher'}"
    main(tmp_path / "run", scenes_dir, teacher, "--config.stage=student", baselines=())
    assert digests(tmp_path / "run", "student") == digests(finished[0], "student")
    assert set(evaluation(tmp_path / "run")) == {"teacher", "student"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "--config.data.eo_bands=('R','G','B')",
            "has EO bands ['R', 'G', 'B', 'NIR']; this run needs ['R', 'G', 'B']",
        ),
        ("--config.teacher.checkpoint={student}", "has sensor sar; this run needs eo"),
        ("--config.normalise.clip=True", "has normalise.clip False; this run needs True"),
        ("--config.model.depth=34", "has model {"),
        ("--config.teacher.checkpoint=nowhere", "nowhere: no such folder"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(finished, scenes_dir, tmp_path, change, message):
    folder = finished[0] / "checkpoints"
    flags = [f"--config.teacher.checkpoint={folder / 'teacher'}", change.format(student=folder / "student")]
    done = main(tmp_path / "run", scenes_dir, *flags, "--config.stage=student", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert message in done.stderr
    assert not (tmp_path / "run").exists(), "refused before the baselines train"


def test_pmap_on_two_devices_has_the_losses_of_jit_on_one(finished, scenes_dir, tmp_path):
    two = {"XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {FAST_COMPILE}"}
    main(tmp_path / "run", scenes_dir, "--config.parallel=pmap", "--config.stage=teacher", env=two)
    one, other = log_of(finished[0], "teacher"), log_of(tmp_path / "run", "teacher")
    for step in one:
        # The order of float32 sums differs; AdamW's first steps, which divide by tiny moments, amplify it.
        assert other[step]["loss"] == pytest.approx(one[step]["loss"], rel=1e-3)
    assert evaluation(tmp_path / "run")["teacher"]["pixels"] == 10 * 64 * 64


def test_evaluate_tool_in_a_fresh_process_gives_the_same_numbers(finished, scenes, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    before = evaluation(workdir)
    (workdir / "evaluation.json").unlink()
    text = run_python("-m", "tools.evaluate", f"--workdir={workdir}").stdout
    assert evaluation(workdir) == before
    assert "HFD student (SAR)" in text
    text = run_python(
        "-m",
        "tools.evaluate",
        f"--workdir={workdir}",
        "--stage=teacher",
        "--split=validation",
        "--window=32",
        "--checkpoint=best",
        "--polygons",
    ).stdout
    assert list(evaluation(workdir, "validation")) == ["teacher"]
    assert evaluation(workdir, "validation")["teacher"]["pixels"] == 6 * 64 * 64
    score = evaluation(workdir, "validation")["teacher"]["buildings"]
    sizes = [np.bincount(ndimage.label(tile["label"] == 4)[0].ravel())[1:] for tile in scenes.source("validation")]
    assert score["class"] == "buildings" and "class buildings  precision" in text
    assert score["true_positives"] + score["false_negatives"] == np.sum(np.concatenate(sizes) >= 80) > 0
    assert (workdir / "figures" / "panel_validation.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=nowhere"], "nowhere/config.json: missing; is nowhere the workdir of a run?"),
        (["--workdir={run}", "--split=tset"], "no split 'tset'; did you mean 'test'"),
        (
            ["--workdir={run}", "--window=50"],
            "config.eval.window is 50: expected a multiple of the network's stride 32",
        ),
        (["--workdir={run}", "--window=-32"], "config.eval.window is -32: expected 0 or more"),
    ],
)
def test_evaluate_tool_names_mistakes(finished, flags, message):
    done = run_python("-m", "tools.evaluate", *[flag.format(run=finished[0]) for flag in flags], check=False)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_damaged_checkpoint_is_refused_by_evaluation(finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    damage(workdir / "checkpoints" / "student" / str(STEPS))
    done = run_python("-m", "tools.evaluate", f"--workdir={workdir}", check=False)
    assert done.returncode == 1 and f"checkpoints/student/{STEPS}: " in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(CheckpointError):
        CheckpointReader(str(workdir / "checkpoints" / "nothing"))
