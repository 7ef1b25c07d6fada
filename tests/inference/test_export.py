"""The exported student: the network's own logits, from the folder alone."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import default
from hfd_jax.core.checkpoint import Checkpoints
from hfd_jax.core.errors import ConfigError, UserError, WorkdirError
from hfd_jax.core.parallel import Jit
from hfd_jax.core.workdir import Workdir, claim
from hfd_jax.data.facts import BandStatistics, Facts, Statistics
from hfd_jax.data.inputs import network_input
from hfd_jax.inference import export
from hfd_jax.inference.restore import load_network, network_from_record
from hfd_jax.train import build
from hfd_jax.train.networks import student_spec, teacher_spec
from tests.conftest import python_environment
from tools.export import main, make_parser

FACTS = Facts(
    name="toy",
    sar_bands=("HH", "VV", "VH"),
    eo_bands=("R", "G", "B"),
    eo_dtype="uint8",
    sar_unit="db",
    class_names=("land", "water", "town"),
    class_colours=((0, 200, 0), (0, 0, 200), (200, 0, 0)),
    look_axis="y",
    pixel_size=0.5,
)
SAR = BandStatistics(mean=(-9.0, -10.0, -17.0), std=(4.0, 5.0, 6.0), low=(-20.0, -22.0, -30.0), high=(2.0, 3.0, -4.0))
EO = BandStatistics(mean=(90.0,) * 3, std=(40.0,) * 3, low=(0.0,) * 3, high=(255.0,) * 3)
HEIGHT, WIDTH = 32, 64


def random_state(model, bands, rng):
    """Random variables that make every part of the network matter, and an adapter larger than the network."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 64, 64, bands), np.float32)))

    def draw(path, leaf):
        name = path[-1].key
        values = rng.normal(size=leaf.shape).astype(np.float32)
        if name == "kernel":
            values /= np.sqrt(np.float32(np.prod(leaf.shape[:-1])))
            return 2 * values if path[-2].key == "classifier" else values  # its input has few channels
        return 1 + 0.2 * abs(values) if name in ("scale", "var") else 0.2 * values

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    adapter = {"kernel": rng.normal(size=(1, 1, 1000, 1000)).astype(np.float32)}
    return {
        "params": {"model": variables["params"], "distiller": adapter},
        "batch_stats": {"model": variables["batch_stats"], "distiller": {}},
    }


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of a run with a teacher and a student that uses a filter, a clip and chosen bands."""
    config = default.get_config()
    config.model.width, config.data.sar_bands = 4, ("VH", "HH")
    config.normalise.sar_filter, config.normalise.clip = "lee", True
    workdir = Workdir(str(tmp_path_factory.mktemp("run")))
    claim(workdir, config)
    inputs = build.make_inputs(config, FACTS, Statistics(SAR, EO, (1, 1, 1)))
    dataset = SimpleNamespace(facts=FACTS, sizes={"train": 1})
    for run in (student_spec(config), teacher_spec()):
        record = build.make_record(config, run, dataset, inputs, {"jax": jax.__version__})
        model, bands = network_from_record(record), len(record["bands"][run.sensor])
        checkpoints = Checkpoints(workdir.checkpoints(run.name))
        checkpoints.save(7, random_state(model, bands, np.random.default_rng(0)), record, score=0.5)
        checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    sar = rng.normal(-14, 6, (3, HEIGHT, WIDTH, 2)).astype(np.float32)
    valid = np.ones((3, HEIGHT, WIDTH), bool)
    valid[0, :20, 30:] = False
    sar[~valid] = np.nan
    return {"sar": sar, "valid": valid}


@pytest.fixture(scope="module")
def logits(workdir, images):
    """The network's logits, computed within this project."""
    network = load_network(workdir.checkpoints("student"), "latest", Jit(jax.devices()[:1]))

    @jax.jit
    def run(variables, sar, valid):
        batch = network_input({"sar": sar, "sar_valid": valid}, network.inputs)
        return network.model.apply(variables, batch["sar"], train=False)[0]

    logits = np.asarray(run(network.variables, images["sar"], images["valid"]))
    assert logits.std((0, 1, 2)).min() > 0.1, "comparing constants would show little"
    return logits


def run_tool(workdir, output, *more):
    main(make_parser().parse_args([f"--workdir={workdir.root}", f"--output={output}", *more]))


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "student"
    run_tool(workdir, folder, f"--size={HEIGHT}x{WIDTH},64")
    return folder


# The compiler knows the parameters and orders sums otherwise: rounding of float32 in logits of size one.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


def test_jax_alone_gives_the_logits_of_the_network_for_any_batch(exported, images, logits, tmp_path):
    """Another process, in the exported folder and without this project, runs the lines of model.json."""
    np.savez(tmp_path / "images.npz", **images)
    program = f"""
import json, sys
exec("\\n".join(json.load(open("model.json"))["usage"]))
images = np.load({str(tmp_path / "images.npz")!r})
assert not np.isnan(logits).any()
three = network(images["sar"], images["valid"])
np.savez({str(tmp_path / "logits.npz")!r}, three=three, one=network(images["sar"][1:2], images["valid"][1:2]))
assert not {{name.split(".")[0] for name in sys.modules}} & {{"hfd_jax", "flax"}}
"""
    environment = {k: v for k, v in python_environment().items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=exported, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    out = np.load(tmp_path / "logits.npz")
    np.testing.assert_allclose(out["three"], logits, **ROUNDING)
    np.testing.assert_allclose(out["one"], logits[1:2], **ROUNDING)


def test_model_json_has_what_a_user_needs(exported, workdir):
    model = json.loads((exported / "model.json").read_text())
    assert (model["name"], model["step"]) == ("HFD student (SAR)", 7)
    assert model["input"]["sar"] == {
        "shape": ["batch", "height", "width", 2],
        "dtype": "float32",
        "bands": ["VH", "HH"],
        "unit": "db",
    }
    assert model["input"]["inside"] == {
        "filter": "lee",
        "clip": [[-30.0, -20.0], [-4.0, 2.0]],
        "mean": [-17.0, -9.0],
        "std": [6.0, 4.0],
    }
    assert (model["input"]["look_axis"], model["input"]["pixel_size_m"], model["input"]["stride"]) == ("y", 0.5, 32)
    assert model["classes"][1] == {"name": "water", "colour": [0, 0, 200]} and model["ignore_label"] == 255
    assert [(a["height"], a["width"]) for a in model["artifacts"]] == [(HEIGHT, WIDTH), (64, 64)]
    for artifact in model["artifacts"]:
        content = (exported / artifact["file"]).read_bytes()
        assert artifact["sha256"] == {artifact["file"]: hashlib.sha256(content).hexdigest()}
    readme = (exported / "README.txt").read_text()
    assert all(line in readme and line in make_parser().format_help() for line in model["usage"])


def test_the_artifact_contains_only_the_network(exported, workdir):
    """One array per parameter and statistic; the adapter alone would be 4 MB."""
    network = load_network(workdir.checkpoints("student"), "latest", Jit(jax.devices()[:1]))
    trained = sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"]))
    assert json.loads((exported / "model.json").read_text())["parameters"]["count"] == trained
    count = sum(leaf.size for leaf in jax.tree.leaves(network.variables))
    content = (exported / f"student_{HEIGHT}x{WIDTH}.stablehlo").read_bytes()
    # Beside them: the instructions, and the matrices that upsample.
    assert 4 * count < len(content) < 4 * count + 100_000
    # Where it was made does not stand in it: the same network is the same file everywhere.
    assert b".py" not in content
    assert content == export.lower(network, (HEIGHT, WIDTH), export.Options().platforms).serialize()


def test_tensorflow_gives_the_logits_of_the_network(workdir, images, logits, tmp_path):
    pytest.importorskip("tensorflow")
    run_tool(workdir, tmp_path / "student", f"--size={HEIGHT}x{WIDTH}", "--format=savedmodel", "--platforms=cpu")
    names = {}
    code = "\n".join(json.loads((tmp_path / "student" / "model.json").read_text())["usage"])
    here = os.getcwd()
    os.chdir(tmp_path / "student")
    try:
        exec(code, names)
    finally:
        os.chdir(here)
    for chosen in (slice(0, 3), slice(1, 2)):
        out = names["network"].serve(images["sar"][chosen], images["valid"][chosen])["logits"]
        np.testing.assert_allclose(out, logits[chosen], **ROUNDING)


def test_half_precision_can_be_chosen(workdir):
    network = export.open_sar_network(workdir, "student", "best", "bfloat16")
    module = export.lower(network, (32, 32), ("cpu",)).mlir_module()
    assert network.record["dtype"] == "bfloat16" and "xbf16>" in module


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (("--network=studnet",), WorkdirError, "no network 'studnet' in it; did you mean 'student'?"),
        (("--network=teacher",), ConfigError, "network 'teacher' reads EO; only SAR networks are exported"),
        (("--size=64,100",), ConfigError, "size 100x100: expected multiples of the network's stride, 32"),
        (("--platforms=cpu,gpu",), ConfigError, "platforms cpu, gpu: expected out of cpu, cuda, rocm, tpu"),
        (("--workdir=nowhere",), WorkdirError, "nowhere/config.json: missing; is nowhere the workdir of a run?"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(workdir, tmp_path, flags, error, message):
    with pytest.raises(error, match=message):
        run_tool(workdir, tmp_path / "student", *flags)
    assert not list(tmp_path.iterdir())


def test_missing_tensorflow_is_reported(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="format savedmodel: TensorFlow is not installed"):
        export.Options(format="savedmodel")


def test_only_an_earlier_export_is_overwritten(workdir, exported, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "lower", lambda *_: SimpleNamespace(serialize=lambda: b"new"))
    run_tool(workdir, tmp_path / "student", "--size=96,128")
    with pytest.raises(WorkdirError, match="holds files already; choose another --output, or --overwrite"):
        run_tool(workdir, tmp_path / "student")
    with monkeypatch.context() as context, pytest.raises(WorkdirError, match="cannot be written \\(No space left"):
        context.setattr(export, "lower", fails)
        run_tool(workdir, tmp_path / "student", "--overwrite")
    assert len(list((tmp_path / "student").glob("*.stablehlo"))) == 2, "a failure leaves the earlier export"
    run_tool(workdir, tmp_path / "student", "--overwrite")
    names = ["README.txt", "model.json", "student_64x64.stablehlo"]
    assert sorted(os.listdir(tmp_path / "student")) == names, "by default the size is that of the crops in training"
    (tmp_path / "student" / "notes.txt").write_text("notes")
    with pytest.raises(UserError, match="notes.txt in it is not part of an earlier export; nothing is overwritten"):
        run_tool(workdir, tmp_path / "student", "--overwrite")
    assert os.listdir(tmp_path) == ["student"]
