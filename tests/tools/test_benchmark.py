"""The benchmark runs and its numbers are consistent; no test checks speed."""

import importlib.util
import json
import re

import numpy as np
import pytest

from configs import default
from hfd_jax.core.errors import UserError
from tests.conftest import run_python
from tests.runs import COARSE_FLAGS
from tools import benchmark
from tools.bench import run
from tools.bench.run import Row, table
from tools.bench.suite import page, speed
from tools.bench.suite import run as suite
from tools.bench.suite.settings import TINY, Settings
from tools.bench.timing import Timing, interleaved

SMALL = (
    "--config=configs/scenes.py",
    "--config.model.width=4",
    *COARSE_FLAGS,
    "--batch=2",
    "--size=64",
    "--seconds=0.01",
    "--rounds=1",
)


def test_steps_are_timed_and_written(tmp_path):
    flags = ("--what=sar_step,inference", f"--json={tmp_path / 'b.json'}", f"--plot={tmp_path / 'b.png'}")
    text = run_python("-m", "tools.benchmark", *SMALL, *flags).stdout
    assert "matrix product" in text
    written = json.loads((tmp_path / "b.json").read_text())
    rows = {row["name"]: row for row in written["rows"]}
    assert set(rows) == {"sar_step", "inference"}
    for row in rows.values():
        assert row["seconds"] > 0 and row["flops"] > 0 and row["memory"] > 0 and len(row["compile_seconds"]) == 2
    assert rows["sar_step"]["flops"] > 2 * rows["inference"]["flops"], "forward, backward, update"
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--what=student"],
            "--what=student is unknown; expected one or more of teacher_step, sar_step, student_step",
        ),
        (["--what=data,sar_step"], "startup, data, prepare, scene, plan cannot be combined with anything else"),
        (["--what=sar_step", "--size=100"], "--size=100: expected a multiple of 32"),
        (["--what=sar_step", "--devices=4"], "--devices=4: expected at most 1"),
    ],
)
def test_invalid_flags_are_named(flags, message):
    done = run_python("-m", "tools.benchmark", *flags, check=False)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


# What the suite must do without: everything that reads data, writes summaries or draws.
WITHOUT = [
    "tensorflow",
    "clu",
    "grain",
    "rasterio",
    "tensorflow_datasets",
    "array_record",
    "pandas",
    "matplotlib",
    "pyogrio",
    "shapely",
    "tqdm",
    "jinja2",
    "tabulate",
    "safetensors",
]
SUITE = """
import importlib, json, sys

class Missing:
    names = set(sys.argv[2].split(","))
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())
from tools import benchmark
from tools.bench.suite import run
from tools.bench.suite.settings import TINY

def launch(name, folder, seconds):  # in this process, which saves the time that starting others takes
    return {"failed": "no card"} if name == "device" else run.here(name, folder, seconds)

benchmark.make_parser(with_data=False)
run.run(TINY, sys.argv[1], launch)
# The launcher, which reads data, needs less.
Missing.names = {"tensorflow", "clu", "rasterio"}
importlib.import_module("main")
importlib.import_module("hfd_jax.train.stages")
"""


def test_the_suite_needs_few_packages_and_outlives_a_part_that_fails(tmp_path, capsys):
    run_python("-c", SUITE, tmp_path, ",".join(WITHOUT))
    parts = json.loads((tmp_path / "suite.json").read_text())["parts"]
    assert parts["device"]["state"] == "failed"
    assert [name for name, part in parts.items() if part["state"] == "done"][:3] == ["reference", "numbers", "speed"]
    assert all(row["error"] <= row["allowed"] for row in parts["numbers"]["rows"]) and not parts["numbers"]["errors"]
    assert [row["step"] for row in parts["speed"]["rows"]] == ["student_step", "sar_step", "teacher_step", "inference"]
    assert all(row["seconds"] > 0 and row["flops"] > 0 and row["planned_memory"] > 0 for row in parts["speed"]["rows"])
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert [row["steps"] for row in parts["training"]["rows"]] == [4, 4, 4]
    assert all(0 <= row["mean_iou"] <= 1 for row in parts["training"]["rows"])
    text = (tmp_path / "suite.md").read_text()
    assert "**Failed**: no card" in text and "student step / SAR-only step" in text

    # The same command repeats what failed, and nothing else.
    peaks = {"float32": {"flops": 1e12, "bandwidth": 1e11}}
    device = {"device": "card", "backend": "gpu", "jax": "0", "memory": 2**30, "peaks": peaks}
    document = suite.run(TINY, str(tmp_path), lambda name, folder, seconds: device)
    assert document["parts"]["speed"]["rows"] == parts["speed"]["rows"]
    assert "[1/6] device: done" in capsys.readouterr().out
    assert "card (gpu), jax 0, memory 1.00 GiB" in (tmp_path / "suite.md").read_text()
    with pytest.raises(UserError, match=r"holds a suite with other settings: .*batch 2.*; expected a new folder"):
        suite.run(Settings(), str(tmp_path))


def test_a_part_that_is_stopped_or_crashes_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(suite.PARTS, "crash", suite.Part("numbers:nothing", 1))
    suite.opened(TINY, str(tmp_path))
    assert re.fullmatch("stopped after 0 s.*", suite.in_process("crash", str(tmp_path), 0.01)["failed"])


def test_the_largest_batch_that_fits_is_chosen():
    program = speed.Program(None, np.zeros(10, np.uint8), (np.zeros(0),), 0.0, None, planned=10 + 4 * 5)
    # 10 bytes whatever the batch and 5 bytes per pair, of which 0.85 may be used.
    assert speed.largest_batch(program, 4, None) == 4
    assert speed.largest_batch(program, 4, 107) == 16 and speed.largest_batch(program, 4, 105) == 8
    assert speed.largest_batch(program, 4, 24) == 2


def test_ratios_are_per_pair_and_beside_their_goals():
    rows = [{"step": "student_step", "seconds": 1.1, "pairs_per_second": 60.0, "share_of_matmul": 0.5}]
    rows.append({"step": "sar_step", "seconds": 1.0})
    compiled = {"step": "student_step", "flavour": "torch compile bf16", "pairs_per_second": 40.0}
    found = page.ratios({"speed": {"rows": rows}, "peer": {"rows": [compiled]}})
    assert list(found) == list(page.GOALS) and list(found.values()) == pytest.approx([1.5, 0.5, 1.1])


def test_a_peer_that_is_not_installed_is_refused_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arguments = benchmark.make_parser().parse_args(["--what=sar_step", "--peer=torch"])
    with pytest.raises(UserError, match="--peer=torch needs PyTorch, which is not installed: pip install torch"):
        run.check(default.get_config(), arguments, 1)


def test_a_scene_is_mapped_timed_and_evaluated(tmp_path, monkeypatch):
    from configs import scenes as scenes_config
    from hfd_jax.inference.mapping.predict import Options
    from tools.bench import scene

    monkeypatch.setattr(scene, "PATCH", 96)
    monkeypatch.setattr(scene, "PATCHES", 2)
    config = scenes_config.get_config()
    config.model.update({"width": 4, "align": "none"})
    scene.write_scene(str(tmp_path), 150, config)
    case = scene.Case(str(tmp_path), Options(window=64, overlap=32, batch_size=1), None, config)
    pixels, seconds, memory = scene.run(case)
    assert pixels == 150 * 150 and seconds > 0 and memory >= 0
    mean_iou, near, elsewhere, equal = scene.evaluate(case, case.map)
    assert 0 <= float(mean_iou) < 0.5 < float(near) < 1 and 0 < float(elsewhere) < 1, "random weights"
    assert equal == "100.0000%", "agrees with itself"
    # Windows start at 32, 64 and 96 and end at 64, 96 and 128: 16 pixels around each of four positions.
    assert scene.near_borders(150, case.options).sum() == 4 * 16


def test_table_shows_the_cost_of_the_teacher_and_the_ratio_to_a_peer():
    costs = {"compile_seconds": (2.0, 1.0), "flops": 4e9, "bytes_accessed": 1e9, "memory": 2**20}
    rows = [
        Row("sar_step", 8, 128, 0.2, (0.19, 0.21), **costs),
        Row("student_step", 8, 128, 0.3, (0.29, 0.31), **costs),
        Row("student_step torch eager float32", 8, 128, 0.45, (0.4, 0.5), ratio=1.5),
    ]
    about = {"device": "cpu", "backend": "cpu", "devices": 1, "jax": "0", "network": "ResNet-18"}
    about |= {"peaks": {"flops": 40e9, "bandwidth": 10e9}, "largest_difference_to_peer": {}}
    text = table(rows, about)
    assert "student step / SAR-only step, batch 8, 128 x 128: 1.50" in text
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["sar_step"][3] == "200.0" and "50%" in lines["sar_step"], "20 of 40 GFLOP/s and 5 of 10 GB/s"
    assert lines["student_step torch eager float32"][-1] == "1.50"


def test_functions_are_timed_in_turn_after_a_warm_up():
    order = []
    found = interleaved({name: lambda name=name: order.append(name) for name in "abc"}, seconds=0, rounds=3, warm_up=1)
    assert order == list("abc" + "abc" + "bca" + "cab")
    assert all(len(timing.seconds) == 3 for timing in found.values())
    assert Timing([3.0, 1.0, 2.0]).median == 2.0 and Timing([3.0, 1.0, 2.0]).spread == (1.5, 2.5)


@pytest.mark.parametrize(
    "fields", [{}, {"align": "flow", "stride": 4, "detail_channels": ()}], ids=["default", "version 0.1"]
)
def test_the_pytorch_peer_computes_the_same(fields):
    """Compares outputs, taps and training loss with the same weights; the order of float32 sums makes about 1e-6."""
    pytest.importorskip("torch", reason="PyTorch, which is optional, is not installed")
    from configs import default
    from tools.bench.cases import Shapes
    from tools.bench.peer import Flavour, Peer

    config = default.get_config()
    config.model.update({"width": 8, **fields})
    peer = Peer(config, Shapes(batch=2, size=64, sar_bands=4, eo_bands=3, classes=5))
    assert max(peer.largest_difference().values()) < 1e-4
    call = peer.training_call("student_step", Flavour(compiled=False, bf16=False))
    losses = [call() for _ in range(8)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0], "it learns"
