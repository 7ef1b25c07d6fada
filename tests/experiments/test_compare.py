"""Tests of sweeps: their runs, the statistics of their results, and the command-line tool."""

import csv
import dataclasses
import glob
import io
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import stats

from configs import default
from hfd_jax.core.errors import ConfigError, StoppedError, UserError
from hfd_jax.experiments import figure, runner, statistics, stored, sweep, tables
from hfd_jax.train.validate import check_fields
from tests.conftest import ROOT, python_environment, run_python
from tests.runs import COARSE_FLAGS, arguments
from tests.sweeps import result, some_sweep
from tools import compare as tool

SHIPPED = sorted(glob.glob(str(ROOT / "configs" / "sweeps" / "*.py")))


def test_rows_share_a_teacher_unless_they_differ_in_a_field_it_depends_on():
    rows = {
        "teacher": {"stage": "teacher"},
        "HFD": {},
        "weak": {"distill.hfd.weight": 1.0},
        "flows": {"model.align": "flow"},
        "few": {"data.label_share": 0.1},
        "whole": {"student.init": "teacher", "data.label_share": 1.0},
    }
    jobs = sweep.plan(some_sweep(rows), default.get_config(), [3, 4], "w")
    teachers = {(job.root, job.row) for job in jobs if job.network == "teacher" and job.seed == 3}
    assert teachers == {
        ("w/teachers/base/seed_3", "teacher"),
        ("w/teachers/model.align_flow/seed_3", ""),
        ("w/teachers/data.label_share_0.1/seed_3", ""),
    }
    students = {job.row: job for job in jobs if job.network == "student" and job.seed == 3}
    assert students["HFD"].config.teacher.checkpoint == "w/teachers/base/seed_3/checkpoints/teacher"
    assert students["weak"].config.teacher.checkpoint == students["HFD"].config.teacher.checkpoint
    assert students["few"].config.teacher.checkpoint == "w/teachers/data.label_share_0.1/seed_3/checkpoints/teacher"
    assert students["SAR-only"].config.teacher.checkpoint == "", "it needs none"
    assert students["HFD"].root == "w/students/base/seed_3", "whatever the row is called, other sweeps find it"
    assert students["SAR-only"].root == "w/students/distill.method_none/seed_3"
    assert students["whole"].root == "w/students/student.init_teacher/seed_3", "the other is the config's own value"
    assert all(job.config.seed == job.seed and job.config.baselines == () for job in jobs)
    assert [job.network for job in jobs] == ["teacher"] * 6 + ["student"] * 12, "each finds its teacher"


@pytest.mark.parametrize("path", SHIPPED)
def test_shipped_sweeps_name_fields_and_values_that_exist(path):
    from configs import scenes as scenes_config

    found = sweep.read_sweep(path)
    jobs = sweep.plan(found, scenes_config.get_config(), [0], "w")
    for job in jobs:
        check_fields(job.config)
    assert {job.row for job in jobs} - {""} == set(found.rows)


def test_some_rows_of_a_sweep():
    found = sweep.read_sweep(str(ROOT / "configs" / "sweeps" / "ombria.py"))
    some = sweep.reduced(found, ["HFD", "teacher @ 10 %"])
    assert list(some.rows) == ["SAR-only @ 10 %", "HFD @ 10 %", "teacher @ 10 %", "SAR-only @ 100 %", "HFD @ 100 %"]
    roots = {job.root for job in sweep.plan(some, default.get_config(), [0], "w")}
    assert roots < {job.root for job in sweep.plan(found, default.get_config(), [0], "w")}, (
        "the runs of the whole sweep"
    )
    assert list(sweep.reduced(found, ["HFD @ 100 %"]).rows) == ["SAR-only @ 100 %", "HFD @ 100 %"]
    with pytest.raises(ConfigError, match="--rows='HDF': sweep ombria has no such row or curve; did you mean 'HFD'"):
        sweep.reduced(found, ["HDF"])


def test_a_misspelt_field_and_two_rows_of_one_run_are_named():
    with pytest.raises(
        ConfigError, match=r"row 'x' of sweep some: config.distill.hfd.wait does not exist: did you mean"
    ):
        sweep.plan(some_sweep({"x": {"distill.hfd.wait": 1.0}}), default.get_config(), [0], "w")
    with pytest.raises(ConfigError, match=r"row 'x' of sweep some: config.model.depth = 'deep'"):
        sweep.plan(some_sweep({"x": {"model.depth": "deep"}}), default.get_config(), [0], "w")
    with pytest.raises(ConfigError, match="rows 'HFD' and 'default' are the same run, w/students/base/seed_0"):
        sweep.plan(some_sweep({"HFD": {}, "default": {"distill.method": ("hfd",)}}), default.get_config(), [0], "w")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"stage": "teachr"},
            "row 'x' of sweep some: stage is 'teachr'; expected 'teacher', or no stage for a student",
        ),
        ({"seed": 7}, "row 'x' of sweep some: config.seed is set by the sweep itself"),
        ({"teacher.checkpoint": "t"}, "row 'x' of sweep some: config.teacher.checkpoint is set by the sweep itself"),
    ],
)
def test_a_row_cannot_set_what_the_sweep_sets(fields, message):
    with pytest.raises(ConfigError, match=message):
        sweep.plan(some_sweep({"x": fields}), default.get_config(), [0], "w")


def test_a_teacher_for_all_rows_is_refused_since_every_seed_has_its_own():
    config = default.get_config()
    config.teacher.checkpoint = "runs/a/checkpoints/teacher"
    with pytest.raises(ConfigError, match="config.teacher.checkpoint is 'runs/a/checkpoints/teacher': a sweep trains"):
        sweep.plan(some_sweep({}), config, [0], "w")


def test_rows_with_many_fields_have_folders_that_a_file_system_takes():
    def folder(last):
        fields = {f"optim.{name}": 0.123456 for name in ("learning_rate", "warmup", "weight_decay", "clip_norm")}
        fields |= {f"distill.cirkd.{name}": 0.75 for name in ("weight", "pixel_weight", "region_weight", "temperature")}
        rows = {"x": {**fields, "distill.method": ("cirkd",), "augment.sar_gain_db": last}}
        return sweep.plan(some_sweep(rows), default.get_config(), [0], "w")[-1].root.split("/")[-2]

    assert len(folder(1.0)) == len(folder(2.0)) == 200 and folder(1.0) != folder(2.0) and folder(1.0) == folder(1.0)


def test_a_file_that_is_not_a_sweep_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nothing.py: no such file"):
        sweep.read_sweep(str(tmp_path / "nothing.py"))
    path = tmp_path / "half.py"
    path.write_text('CONFIG = "c"\nREFERENCE = "b"\n')
    with pytest.raises(ConfigError, match="ROWS is missing"):
        sweep.read_sweep(str(path))
    path.write_text('CONFIG = "c"\nREFERENCE = "b"\nROWS = {"a": {}}\n')
    with pytest.raises(ConfigError, match="REFERENCE is 'b'; the rows are a"):
        sweep.read_sweep(str(path))
    path.write_text('CONFIG = "c"\nREFERENCE = "a"\nROWS = {"a @ 1": {}, "b @ 1": {}}\nAXIS = "seed"\nFLOOR = "c"\n')
    with pytest.raises(ConfigError, match="FLOOR is 'c'; the curves are a, b"):
        sweep.read_sweep(str(path))
    path.write_text('CONFIG = "c"\nREFERENCE = "a"\nROWS = ["a"]\n')
    with pytest.raises(ConfigError, match=r"half.py: ROWS is \['a'\]; expected"):
        sweep.read_sweep(str(path))
    path.write_text('ROWS = {"a": {}\n')
    with pytest.raises(ConfigError, match="half.py does not run: SyntaxError: '{' was never closed"):
        sweep.read_sweep(str(path))


def test_values_without_a_place_on_the_axis_or_in_the_table_are_refused_before_training():
    for axis, message in (
        ("data.label_shares", "AXIS of sweep some: config.data.label_shares does not exist: did you mean"),
        ("seed", "row 'SAR-only' of sweep some: config.seed is 0, and its axis is logarithmic"),
        ("dtype", "config.dtype is 'float32'"),
    ):
        with pytest.raises(ConfigError, match=message):
            sweep.plan(dataclasses.replace(some_sweep({}), axis=axis), default.get_config(), [0], "w")
    with pytest.raises(ConfigError, match="config.eval.checkpoint is set by the sweep itself"):
        sweep.plan(some_sweep({"A": {"eval.checkpoint": "best"}}), default.get_config(), [0], "w")


def test_a_failed_run_is_named_and_does_not_stop_the_others(monkeypatch):
    def run(job):
        if job.seed == 1:
            raise MemoryError("no room")

    monkeypatch.setattr(runner, "run", run)
    jobs = sweep.plan(some_sweep({}), default.get_config(), [0, 1, 2], "w")
    lines = []
    [(job, error)] = runner.run_all(jobs, 1, lines.append)
    assert (job.row, job.seed) == ("SAR-only", 1) and str(error) == "MemoryError: no room"
    assert any("3/3: SAR-only, seed 2: done" in line for line in lines)


def die(job):
    signal.raise_signal(signal.SIGKILL)


def test_a_worker_that_is_killed_is_an_error_that_names_its_run(monkeypatch, tmp_path):
    """The system kills a worker that runs out of memory; resuming without an error would fail forever."""
    monkeypatch.setattr(runner, "_attempt_quietly", die)
    job, _ = sweep.plan(some_sweep({}), default.get_config(), [0, 1], str(tmp_path))
    (tmp_path / "students" / "distill.method_none" / "seed_0").mkdir(parents=True)
    (tmp_path / "students" / "distill.method_none" / "seed_0" / "output.txt").touch()
    with pytest.raises(UserError, match=f"a worker process died .* in one of: {job.root}; its output.txt"):
        runner.run_all([job], 2)


def test_no_two_runs_share_a_gpu(monkeypatch):
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with pytest.raises(UserError, match="--at_once is 3; every run needs its own GPU: expected at most 2"):
        runner.run_all([], 3)
    assert [runner._own_gpu(number) for number in (0, 1)] == ["3", "5"]
    runner.run_all([], 2)


def test_training_time_is_measured_on_undisturbed_steps():
    rates = [10.0] * 5 + [2.0] * 20 + [10.0] * 5  # other load most of the time
    assert statistics.undisturbed(rates, 600) == pytest.approx(60.0)
    assert statistics.undisturbed([], 600) is None


def test_differences_are_paired_by_seed_and_tested():
    ours, theirs, best = [0.61, 0.72, 0.83], [0.50, 0.60, 0.70], [0.70, 0.80, 0.90]
    results = {
        "teacher": {seed: result(value) for seed, value in enumerate(best)},
        "SAR-only": {seed: result(value) for seed, value in enumerate(theirs)},
        "HFD": {2 - seed: result(value) for seed, value in enumerate(reversed(ours))},  # finished in another order
    }
    of_results = some_sweep({"teacher": {"stage": "teacher"}, "HFD": {}})
    lines = {line.row: line for line in statistics.lines_of(results, of_results, {"HFD": 1.5})}
    hfd, gain = lines["HFD"], np.subtract(ours, theirs)
    test = stats.ttest_rel(ours, theirs)
    low, high = test.confidence_interval(0.95)
    assert np.isclose(hfd.gain, gain.mean()) and np.isclose(hfd.p, test.pvalue)
    tested = [line for line in lines.values() if line.p is not None and not np.isnan(line.p)]
    assert [line.corrected_p for line in tested] == statistics.holm([line.p for line in tested])
    assert np.allclose([hfd.gain - hfd.gain_half_width, hfd.gain + hfd.gain_half_width], [low, high])
    assert np.isclose(hfd.closed, gain.mean() / 0.2), "of the gap of 0.2 to the teacher"
    assert np.isclose(hfd.half_width, stats.t.ppf(0.975, 2) * np.std(ours, ddof=1) / np.sqrt(3))
    assert lines["SAR-only"].gain is None and lines["teacher"].closed is None
    assert np.isnan(hfd.iou["water"]) and np.isclose(hfd.iou["land"], np.mean(ours))


def test_p_values_are_corrected_for_the_rows_of_the_table():
    assert statistics.holm([]) == [] and statistics.holm([0.3]) == [0.3]
    assert np.allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]), "as R's p.adjust"
    assert np.allclose(statistics.holm([0.5, 0.6]), [1, 1])
    values = {
        "SAR-only": (0.5, 0.6, 0.7),
        "near": (0.51, 0.6, 0.68),
        "far": (0.71, 0.8, 0.91),
        "worse": (0.3, 0.39, 0.5),
    }
    results = {row: {seed: result(value) for seed, value in enumerate(of_row)} for row, of_row in values.items()}
    lines = statistics.lines_of(results, some_sweep({row: {} for row in values}), {})
    p, corrected = ([getattr(line, name) for line in lines[1:]] for name in ("p", "corrected_p"))
    assert corrected == statistics.holm(p) and lines[0].corrected_p is None
    words = tables.verdict(lines, "SAR-only")
    assert "over 3 rows" in words and "Above: far. Below: worse. No difference found: near." in words
    assert tables.verdict(lines[:1], "SAR-only") == ""


def test_the_gap_uses_the_seeds_that_all_rows_have_and_starts_at_the_floor():
    results = {
        "teacher": {0: result(0.9), 1: result(0.8)},
        "SAR-only": {0: result(0.5), 1: result(0.7)},
        "HFD": {0: result(0.7)},
        "HFD without taps": {0: result(0.6), 1: result(0.7)},
    }
    rows = {"teacher": {"stage": "teacher"}, "HFD": {}, "HFD without taps": {}}
    made_of = dataclasses.replace(some_sweep(rows), reference="HFD", floor="SAR-only")
    closed = {line.row: line.closed for line in statistics.lines_of(results, made_of, {})}
    assert closed["HFD"] == pytest.approx(0.5) and closed["HFD without taps"] == pytest.approx(0.1 / 0.5)
    assert closed["teacher"] is None and closed["SAR-only"] is None


def test_a_missing_seed_is_left_out():
    results = {"SAR-only": {0: result(0.5), 1: result(0.6)}, "HFD": {1: result(0.7, [])}}
    _, hfd = statistics.lines_of(results, some_sweep({"HFD": {}}), {})
    assert hfd.seeds == 1 and np.isclose(hfd.gain, 0.1) and np.isnan(hfd.p) and hfd.seconds is None


def test_tables_say_the_same_in_three_formats(tmp_path):
    results = {
        "SAR_only @ 10 %": {0: result(0.5), 1: result(0.6)},
        "SAR_only @ 20 %": {0: result(0.6)},
        "HFD @ 10 %": {0: result(0.7), 1: result(0.75)},
    }
    made_of = some_sweep({row: {} for row in results}, reference="SAR_only")
    lines = statistics.lines_of(results, made_of, {"HFD @ 10 %": 2.0})
    assert [line.gain is None for line in lines] == [True, True, False], "each point against its own place's"
    text = tables.markdown(tables.score_table(lines))
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()]
    names = "row, seeds, mIoU (95 % interval), difference (95 % interval), p (Holm), gap closed, macro F1, parameters, "
    assert cells[0] == [*names.split(", ")[:-1], "training", "Mpixel/s"]
    assert cells[4][:4] == ["HFD @ 10 %", "2", "0.725 ± 0.318", "+0.175 ± 0.318"]
    assert cells[4][-3:] == ["2.50 M", "1:00", "2.00"]
    assert cells[3][:4] == ["SAR_only @ 20 %", "1", "0.600", ""], "a single seed has no interval"
    rows = list(csv.DictReader(io.StringIO(tables.comma_separated(lines))))
    assert float(rows[2]["mean_iou"]) == lines[2].mean_iou and float(rows[2]["iou land"]) == 0.725
    assert list(rows[0])[:3] == ["row", "seeds", "mean_iou"] and list(rows[0])[-2:] == ["iou land", "iou water"]
    assert rows[0]["gain"] == "" and rows[1]["megapixels"] == "" and rows[0]["parameters"] == "2500000"
    tex = tables.latex(tables.score_table(lines))
    assert r"SAR\_only" in tex and r"HFD @ 10 \%" in tex and r"0.725 $\pm$ 0.318" in tex and tex.count(r" \\") == 4
    assert tex.count("rule\n") == 3 and r"\begin{tabular}{lrrrrrrrrr}" in tex
    by_class = tables.markdown(tables.class_table(lines)).splitlines()
    assert [cell.strip() for cell in by_class[4].strip("|").split("|")] == ["HFD @ 10 %", "0.725", ""]
    for places in ({}, {"SAR_only @ 10 %": 0.1, "SAR_only @ 20 %": 0.2, "HFD @ 10 %": 0.1}):
        figure.draw(str(tmp_path / "f.png"), lines, results, made_of, places)
        assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_the_front_holds_the_rows_that_no_faster_row_surpasses(tmp_path):
    results = {
        "teacher": {0: result(0.9)},
        "slow": {0: result(0.7)},
        "fast": {0: result(0.6)},
        "beaten": {0: result(0.5)},
    }
    made_of = some_sweep({row: {} for row in results} | {"teacher": {"stage": "teacher"}}, reference="fast")
    speeds = {"teacher": 9.0, "slow": 1.0, "fast": 4.0, "beaten": 2.0}
    lines = statistics.lines_of(results, made_of, speeds)
    students = [line for line in lines if line.row != "teacher"]
    assert [line.row for line in figure.speed_front(students)] == ["slow", "fast"]
    assert figure.draw_speed(str(tmp_path / "speed.png"), lines, made_of)
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    same = statistics.lines_of(results, made_of, dict.fromkeys(results, 2.0))
    assert not figure.draw_speed(str(tmp_path / "none.png"), same, made_of), "nothing to compare"
    assert not (tmp_path / "none.png").exists()


def test_the_tool_trains_missing_runs_and_reuses_finished_ones(scenes, scenes_dir, tmp_path):
    path = tmp_path / "small.py"
    path.write_text(
        'CONFIG = "configs/scenes.py"\nREFERENCE = "SAR-only"\n'
        'ROWS = {"EO": {"stage": "teacher"}, "SAR-only": {"distill.method": ()}, "HFD": {}}\n'
    )
    flags = [flag for flag in arguments(tmp_path / "c", scenes_dir)[2:] if "baselines" not in flag]
    flags += ["--config.train.eval_every=0", *COARSE_FLAGS]
    command = ("-m", "tools.compare", f"--sweep={path}", *flags, "--at_once=2")
    text = run_python(*command, "--seeds=1").stdout
    assert "3 runs, 0 of them finished" in text and "3/3: " in text
    table = (tmp_path / "c" / "small.md").read_text()
    assert table.strip() in text
    [hfd] = [row for row in table.splitlines() if re.match(r"\| HFD +\| +1 \|", row)]
    assert hfd.count("|") == 11
    rows = list(csv.DictReader(io.StringIO((tmp_path / "c" / "small.csv").read_text())))
    assert [row["row"] for row in rows] == ["EO", "SAR-only", "HFD"]
    assert all(float(row["seconds"]) > 0 and float(row["megapixels"]) > 0 for row in rows)
    assert int(rows[1]["parameters"]) == int(rows[2]["parameters"]) > 0, "adapters are not used"
    other = run_python(*command, "--seeds=1", "--config.optim.learning_rate=0.5", check=False)
    assert other.returncode == 1 and "optim.learning_rate: 0.003 stored, 0.5 now" in other.stderr
    again = run_python(*command, "--seeds=1").stdout
    assert "3 runs, 3 of them finished" in again and "/3:" not in again


def test_impossible_runs_are_found_before_the_first_is_trained(scenes, scenes_dir, tmp_path):
    """All of them in one error, also what only the data set shows."""
    base = default.get_config()
    base.data.dir, base.data.name = scenes_dir, os.path.relpath(os.path.dirname(scenes.directory), scenes_dir)
    rows = {
        "fine": {},
        "crop": {"data.crop": 512},
        "band": {"data.sar_bands": ("XX",)},
        "split": {"eval.split": "tests"},
    }
    jobs = sweep.plan(some_sweep(rows, reference="fine"), base, [0, 1], str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        tool.check_all(jobs, 1)
    message = str(caught.value)
    assert re.match(r"\d+ of \d+ runs cannot be trained, nothing was started. ", message)
    for part in ("teacher, crop: config.data.crop is 512", "no sar band 'XX'", "no split 'tests'"):
        assert part in message
    assert "fine" not in message and not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [StoppedError("SIGTERM"), KeyboardInterrupt()])
def test_a_sweep_that_is_stopped_leaves_its_table(monkeypatch, tmp_path, stop):
    made, written = some_sweep({"HFD": {}}), []

    def run_all(*arguments):
        raise stop

    monkeypatch.setattr(tool.sweep, "read_sweep", lambda path: made)
    monkeypatch.setattr(tool.config_flags, "config", lambda reference: default.get_config())
    monkeypatch.setattr(tool, "check_all", lambda *arguments: None)
    monkeypatch.setattr(tool.runner, "run_all", run_all)
    monkeypatch.setattr(tool.statistics, "collect", lambda jobs: {"SAR-only": {0: result(0.5)}})
    monkeypatch.setattr(tool, "write", lambda *arguments: written.append(arguments))
    arguments = tool.make_parser().parse_args([f"--workdir={tmp_path}"])
    with pytest.raises(type(stop)):
        tool.main(arguments)
    [(found, root)] = written
    assert found.speed == {} and root == str(tmp_path), "without measuring speeds"
    assert stored.read(str(tmp_path / "some.json")).results["SAR-only"][0].mean_iou == 0.5


def test_workers_save_and_stop_when_the_tool_is_killed(scenes, scenes_dir, tmp_path):
    path = tmp_path / "long.py"
    path.write_text(
        'CONFIG = "configs/scenes.py"\nREFERENCE = "SAR-only"\nROWS = {"SAR-only": {"distill.method": ()}}\n'
    )
    flags = [flag for flag in arguments(tmp_path / "c", scenes_dir)[2:] if "baselines" not in flag]
    flags += ["--config.student.steps=100000", *COARSE_FLAGS, "--config.train.log_every=1"]
    command = ("-m", "tools.compare", f"--sweep={path}", *flags, "--at_once=2", "--seeds=1")
    output = tmp_path / "c" / "students" / "distill.method_none" / "seed_0" / "output.txt"
    tool = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env=python_environment(), stdout=subprocess.DEVNULL
    )
    try:
        wait_until_written(output, "student  2/")
    finally:
        tool.send_signal(signal.SIGKILL)
        tool.wait()
    wait_until_written(output, "the same command continues")
    assert "SIGTERM: stops after this step, with a checkpoint" in output.read_text()


def test_no_further_run_begins_once_the_tool_is_interrupted(monkeypatch, tmp_path):
    """A signal does not interrupt an evaluation, and the pool has already assigned the next run."""
    begun, codes = [], []
    monkeypatch.setattr(runner, "run", lambda job: begun.append(job.root))
    monkeypatch.setattr(runner.os, "dup2", lambda *descriptors: None)
    monkeypatch.setattr(runner.os, "_exit", codes.append)
    job, _ = sweep.plan(some_sweep({}), default.get_config(), [0, 1], str(tmp_path))
    for answers in ([False, True], [True, True]):  # asked before and after the run
        monkeypatch.setattr(runner, "_to_stop", iter(answers).__next__)
        runner._attempt_quietly(job)
    assert begun == [job.root] and codes == [75, 75]


def wait_until_written(path, text):
    end = time.monotonic() + 120
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, path.read_text() if path.exists() else f"{path}: not there"
        time.sleep(0.2)
