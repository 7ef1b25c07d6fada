"""The Python API, used as a library: any size, masks, clear errors, the same maps as tools.predict."""

import os
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

import hfd_jax
from hfd_jax.core.errors import DataError, UserError
from hfd_jax.core.parallel import Jit
from hfd_jax.data.inputs import network_input
from hfd_jax.data.simulator import CLASS_COLOURS, CLASS_NAMES, simulate
from hfd_jax.inference.restore import load_network
from tests.conftest import ROOT, python_environment
from tests.scene_files import read, write
from tests.scene_files import run_tool as predict
from tests.small_network import TILES, write_network
from tools import export


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_network(folder)
    return folder


@pytest.fixture(scope="module")
def file(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "student"
    flags = [f"--workdir={workdir}", f"--output={folder}", "--format=model"]
    export.main(export.make_parser().parse_args(flags))
    return folder / "student.safetensors"


@pytest.fixture(scope="module")
def student(workdir):
    return hfd_jax.load(workdir)


@pytest.fixture(scope="module")
def sar():
    """[64, 64, 2], dB."""
    return simulate(7, TILES).sar


def test_attributes_say_what_the_network_expects(student):
    assert (student.sensor, student.bands, student.unit) == ("sar", ("VV", "VH"), "db")
    assert (student.classes, student.colours) == (CLASS_NAMES, CLASS_COLOURS)
    assert student.pixel_size == 1.0 and student.title == "HFD student (SAR)"
    assert all(-40 < mean < 0 for mean in student.statistics.mean) and len(student.statistics.std) == 2


def test_probabilities_are_those_of_the_networks_logits(workdir, student, sar):
    network = load_network(str(workdir / "checkpoints" / "student"), "latest", Jit(jax.devices()[:1]))
    batch = network_input({"sar": sar[None], "sar_valid": np.ones((1, 64, 64), bool)}, network.inputs)
    expected = jax.nn.softmax(network.model.apply(network.variables, batch["sar"], train=False)[0])
    classes, probabilities = student.predict(sar)
    np.testing.assert_allclose(probabilities, expected[0], atol=1e-4)
    assert np.array_equal(classes, probabilities.argmax(-1)) and len(np.unique(classes)) > 2


@pytest.mark.parametrize("size", [(5, 7), (100, 133), (1500, 40)], ids=str)
def test_any_size_gives_the_map_of_tools_predict(student, workdir, sar, tmp_path, size):
    image = np.tile(sar, (24, 3, 1))[: size[0], : size[1]]
    classes, probabilities = student.predict(image)
    assert classes.shape == size and classes.dtype == np.uint8
    assert probabilities.shape == (*size, 5) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    path = write(tmp_path / "scene.tif", image)
    predict(f"workdir={workdir}", f"input={path}", f"output={tmp_path}/maps", "probabilities")
    np.testing.assert_array_equal(classes, read(tmp_path / "maps" / "scene.tif")[0])
    stored = np.rint(np.moveaxis(probabilities, -1, 0) * 254)
    np.testing.assert_array_equal(stored, read(tmp_path / "maps" / "scene_probabilities.tif"))


def test_the_file_predicts_bit_for_bit_like_the_workdir_from_any_folder(student, file, sar, tmp_path):
    np.save(tmp_path / "image.npy", sar)
    program = f"""
import sys
import numpy as np
import hfd_jax
assert "jax" not in sys.modules, "importing the package is cheap"
student = hfd_jax.load({str(file)!r})
classes, probabilities = student.predict(np.load("image.npy"))
np.savez("out.npz", classes=classes, probabilities=probabilities)
"""
    flags = f"{python_environment()['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=python_environment(PYTHONPATH=str(ROOT), XLA_FLAGS=flags),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out, (classes, probabilities) = np.load(tmp_path / "out.npz"), student.predict(sar)
    np.testing.assert_array_equal(out["classes"], classes)
    np.testing.assert_array_equal(out["probabilities"], probabilities)
    assert hfd_jax.load(file) == hfd_jax.load(os.path.dirname(file)), "or the folder that holds it"


def test_a_batch_gives_the_maps_of_its_images(student, sar):
    images = np.stack([sar, sar[::-1], sar * 0.5])
    classes, probabilities = student.predict(images)
    assert classes.shape == (3, 64, 64) and probabilities.shape == (3, 64, 64, 5)
    for k, image in enumerate(images):
        np.testing.assert_array_equal(classes[k], student.predict(image)[0])


def test_invalid_pixels_have_class_255_and_probability_0_and_no_influence(student, sar):
    valid = np.ones((64, 64), bool)
    valid[:20, 30:] = False
    other = np.where(valid[..., None], sar, 7.0)
    classes, probabilities = student.predict(other, valid)
    assert np.array_equal(classes == 255, ~valid) and not probabilities[~valid].any()
    with_nan = np.where(valid[..., None], sar, np.nan)
    for array, mask in ((with_nan, None), (with_nan, np.ones_like(valid))):
        found = student.predict(array, mask)
        np.testing.assert_array_equal(found[0], classes)
        np.testing.assert_array_equal(found[1], probabilities)
    one_band = sar.copy()
    one_band[3, 4, 1] = np.inf
    assert np.argwhere(student.predict(one_band)[0] == 255).tolist() == [[3, 4]]
    empty, nothing = student.predict(np.full_like(sar, np.nan))
    assert (empty == 255).all() and not nothing.any()
    strange = sar.copy()
    strange[0, 0] = 1000
    with pytest.warns(UserWarning, match="outside -80 to 60 dB count as no data"):
        assert student.predict(strange)[0][0, 0] == 255


def test_types_with_the_same_values_give_the_same_map(student, sar):
    rounded = np.rint(sar)
    expected, _ = student.predict(rounded)
    for dtype in (np.float64, np.int16, np.int64):
        np.testing.assert_array_equal(student.predict(rounded.astype(dtype))[0], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[..., :1], r"shape \(64, 64, 1\), so 1 bands; expected \[H, W, 2\] .* bands VV, VH"),
        (lambda x: x[..., 0], r"array has shape \(64, 64\); expected \[H, W, 2\] or \[B, H, W, 2\]"),
        (lambda x: x[:0], "holds no pixels"),
        (lambda x: x.astype(np.complex64), "array is complex64; expected real numbers, in the unit 'db'"),
        (lambda x: x.astype(str), "expected real numbers"),
        (
            lambda x: 10 ** (x / 10),
            r"trained on dB, which is mostly negative: convert linear power with 10 \* np.log10",
        ),
        (lambda x: np.where(x > -12, x, -9999), "does -9999 mean no data .mark its pixels with valid=False or NaN"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(student, sar, change, message):
    with pytest.raises(DataError, match=message):
        student.predict(change(sar))


def test_masks_that_do_not_fit_are_refused_and_zeros_are_reported(student, sar):
    for valid in (np.ones((64, 63), bool), np.ones((64, 64)), np.ones((1, 64, 64), bool)):
        with pytest.raises(DataError, match=r"valid is .*; expected bool of shape \(64, 64\)"):
            student.predict(sar, valid)
    with pytest.warns(UserWarning, match="exactly 0 and count as data; mark them with valid=False or NaN"):
        student.predict(np.where(np.arange(64)[:, None, None] < 8, 0, sar))
    bright = np.full((2, 2, 2), 3.0)
    with pytest.raises(DataError, match="mostly negative"):
        student.predict(bright)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (student.predict(bright, check=False)[0] < 5).all()


def test_the_teacher_reads_optical_arrays(tmp_path):
    write_network(tmp_path, "eo")
    teacher, eo = hfd_jax.load(tmp_path, network="teacher"), simulate(7, TILES).eo
    assert (teacher.sensor, teacher.unit, len(teacher.bands)) == ("eo", "uint8", 4)
    assert (teacher.predict(eo)[0] < 5).all()
    with pytest.raises(DataError, match="array is int64; .* was trained on uint8, which cannot hold its values"):
        teacher.predict(eo.astype(np.int64))


def test_load_names_mistakes(workdir, file, tmp_path):
    for path, more, message in (
        (tmp_path / "nowhere", {}, "nowhere: no such file or folder"),
        (tmp_path, {}, "no model file .* in this folder"),
        (workdir, {"network": "studnet"}, "no network 'studnet' in it; did you mean 'student'"),
        (file, {"network": "teacher"}, "holds the network 'student', not 'teacher'"),
        (file, {"checkpoint": "best"}, "a model file holds one checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            hfd_jax.load(path, **more)


def test_data_sets_open_by_name(scenes, scenes_dir):
    name = os.path.relpath(os.path.dirname(scenes.directory), scenes_dir)
    dataset = hfd_jax.open_dataset(name, scenes_dir)
    tile = dataset.source("test")[3]
    assert dataset.sizes["test"] == 10 and tile["sar"].shape == (64, 64, 2) and tile["label"].dtype == np.uint8
    with pytest.raises(DataError, match="no prepared data set"):
        hfd_jax.open_dataset("scenes/none", scenes_dir)


def test_version_and_names():
    assert hfd_jax.__version__[0].isdigit() and {"load", "open_dataset", "read_metrics"} <= set(dir(hfd_jax))
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = hfd_jax.lode


def test_the_documented_example_runs(file, sar, tmp_path, monkeypatch):
    """The first block of docs/python.md, and the model card's, with the file and the image that they name."""
    for text in ((ROOT / "docs" / "python.md").read_text(), (file.parent / "README.md").read_text()):
        code = text.split("```python\n")[1].split("```")[0]
        monkeypatch.chdir(tmp_path)
        np.save("image.npy", sar)
        if not os.path.exists("student.safetensors"):
            os.symlink(file, "student.safetensors")
        names = {}
        exec(code, names)
        assert names["classes"].shape == (64, 64)
