"""The model file: its content, the errors for damaged files, and the tools that read it."""

import json
import os

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml

import hfd_jax
from hfd_jax.core.errors import CheckpointError, ConfigError, WorkdirError
from hfd_jax.core.parallel import Jit
from hfd_jax.inference.model_file import find_model_file, read_model_file
from hfd_jax.inference.restore import load_network
from tests.scene_files import read, write
from tests.scene_files import run_tool as predict
from tests.small_network import TILES, write_network
from tools import evaluate, export

SCORES = {"mean_iou": 0.5, "macro_f1": 0.625, "accuracy": 0.75, "kappa": None}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with an evaluation of its student (step 1) and of an earlier step on another data set."""
    folder = tmp_path_factory.mktemp("run")
    write_network(folder)
    names = load_network(str(folder / "checkpoints" / "student"), "latest", Jit(jax.devices()[:1])).record["facts"]
    row = {"title": "student", **SCORES, "per_class": {name: {"iou": 0.25} for name in names["class_names"]}}
    rows = {"test": {"student": row | {"step": 1}}, "folder_other_test": {"student": row | {"step": 0}}}
    (folder / "evaluation.json").write_text(json.dumps(rows))
    return folder


def run_export(workdir, output, *more):
    export.main(export.make_parser().parse_args([f"--workdir={workdir}", f"--output={output}", *more]))


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "student"
    run_export(workdir, folder, "--format=model")
    return folder


def test_the_file_holds_the_network_and_nothing_of_its_training(workdir, exported):
    assert sorted(os.listdir(exported)) == ["README.md", "student.safetensors"]
    record, variables = read_model_file(str(exported / "student.safetensors"))
    network = load_network(str(workdir / "checkpoints" / "student"), "latest", Jit(jax.devices()[:1]))
    jax.tree.map(np.testing.assert_array_equal, variables, jax.device_get(network.variables))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    for key in ("network", "title", "sensor", "model", "dtype", "bands", "facts", "inputs", "step", "versions"):
        assert record[key] == network.record[key]
    assert all(path.startswith(("params/model/", "batch_stats/model/")) for path in record["arrays"])
    arrays = safetensors.numpy.load_file(exported / "student.safetensors")
    assert "params/encoder/conv1/kernel" in arrays and "params/classifier/kernel" in arrays


def test_the_file_names_no_folder_of_the_machine(workdir, tmp_path):
    config = json.loads((workdir / "config.json").read_text())
    record = {"arrays": {}, "config": config | {"data": config["data"] | {"dir": str(tmp_path / "somebody" / "data")}}}
    record["pretrained"] = {"file": str(tmp_path / "somebody" / "encoder.safetensors"), "source": "resnet.pth"}
    from hfd_jax.inference.model_file import shareable

    assert "somebody" not in json.dumps(shareable(record))
    assert shareable(record)["pretrained"]["file"] == "encoder.safetensors"


def test_the_card_states_what_the_run_recorded_and_invents_nothing(exported):
    card = (exported / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "unknown" and front["library_name"] == "hfd_jax" and "sar" in front["tags"]
    ((result,),) = [model["results"] for model in front["model-index"]]
    assert result["dataset"] == {"name": "scenes", "type": "scenes", "split": "test"}
    assert {m["type"]: m["value"] for m in result["metrics"]} == {
        key: value for key, value in SCORES.items() if value is not None
    }
    assert "| test | 0.5000 | 0.6250 | 0.7500 | unknown | 0.2500 |" in card and "folder_other_test" not in card
    for heading in ("Model description", "Intended use", "Limits", "Training data", "Metrics", "How to use", "Licence"):
        assert f"## {heading}\n" in card
    assert "bands VV, VH in this order, unit dB" in card and "step 1, validation mIoU during training: unknown" in card
    assert "Versions: unknown" in card and "Teacher: none recorded" in card


def test_the_card_names_the_licence_that_was_given(workdir, exported, tmp_path):
    assert "Of these weights: not stated" in (exported / "README.md").read_text()
    run_export(workdir, tmp_path / "student", "--format=model", "--license=CC-BY-4.0")
    card = (tmp_path / "student" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-4.0"
    assert "Of these weights: CC-BY-4.0." in card and "not stated" not in card
    with pytest.raises(ConfigError, match="license 'free to use': expected an SPDX identifier such as Apache-2.0"):
        run_export(workdir, tmp_path / "other", "--format=model", "--license=free to use")
    with pytest.raises(ConfigError, match="license MIT: only format model has a model card; leave out the license"):
        run_export(workdir, tmp_path / "other", "--license=MIT")
    assert os.listdir(tmp_path) == ["student"]


def test_a_run_without_evaluation_has_a_card_without_metrics(tmp_path):
    write_network(tmp_path / "run")
    run_export(tmp_path / "run", tmp_path / "student", "--format=model")
    card = (tmp_path / "student" / "README.md").read_text()
    assert "Unknown: the run holds no evaluation of this checkpoint." in card and "model-index" not in card


def test_damaged_and_foreign_files_are_named(exported, tmp_path):
    good = (exported / "student.safetensors").read_bytes()
    start, path = 8 + int.from_bytes(good[:8], "little"), tmp_path / "student.safetensors"
    rng = np.random.default_rng(0)
    places = [0, 3, 9, start - 2, start, len(good) - 1, *rng.integers(len(good), size=30)]
    for place in places:
        content = bytearray(good)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"student.safetensors: "):
            read_model_file(str(path))
    for length in (0, 7, 100, start, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match="student.safetensors: damaged or not a safetensors file"):
            read_model_file(str(path))
    path.write_bytes(safetensors.numpy.save({"weight": np.zeros(3, np.float32)}, {"format": "pt"}))
    with pytest.raises(CheckpointError, match="student.safetensors: not a model file; expected one written by"):
        read_model_file(str(path))
    with pytest.raises(CheckpointError, match=r"missing.safetensors: no such file"):
        find_model_file(str(tmp_path / "missing.safetensors"))


def test_a_folder_stands_for_its_only_model_file(exported, tmp_path):
    assert find_model_file(str(exported)) == str(exported / "student.safetensors")
    with pytest.raises(CheckpointError, match="no model file .* in this folder"):
        find_model_file(str(tmp_path))
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="2 .safetensors files in this folder; name one"):
        find_model_file(str(tmp_path))


def test_only_an_earlier_export_is_overwritten(workdir, tmp_path):
    folder = tmp_path / "student"
    run_export(workdir, folder, "--format=model")
    with pytest.raises(WorkdirError, match="holds files already"):
        run_export(workdir, folder, "--format=model")
    (folder / "README.md").write_text("edited")
    run_export(workdir, folder, "--format=model", "--overwrite")
    assert (folder / "README.md").read_text() != "edited"
    (folder / "notes.txt").write_text("notes")
    with pytest.raises(WorkdirError, match=r"notes.txt in it is not part of an earlier export"):
        run_export(workdir, folder, "--format=model", "--overwrite")
    (folder / "notes.txt").unlink()
    (folder / "another.safetensors").write_bytes((folder / "student.safetensors").read_bytes())
    with pytest.raises(WorkdirError, match=r"in it is not part of an earlier export"):
        run_export(workdir, folder, "--format=model", "--overwrite")
    assert (folder / "another.safetensors").exists()
    with pytest.raises(ConfigError, match="format model: the file serves images of any size"):
        run_export(workdir, tmp_path / "other", "--format=model", "--size=64")
    assert os.listdir(tmp_path) == ["student"]


def test_predict_takes_the_file_in_place_of_the_workdir(workdir, exported, tmp_path):
    from hfd_jax.data.simulator import simulate

    path = write(tmp_path / "scene.tif", simulate(7, TILES).sar, names=("VV", "VH"))
    flags = [f"input={path}", "window=64", "overlap=32", "probabilities"]
    predict(f"workdir={workdir}", f"output={tmp_path}/run", *flags)
    predict(f"model={exported}", f"output={tmp_path}/file", *flags)
    for name in ("scene.tif", "scene_probabilities.tif"):
        np.testing.assert_array_equal(read(tmp_path / "file" / name), read(tmp_path / "run" / name))
    with pytest.raises(ConfigError, match="holds the network 'student', not 'sar_only'"):
        predict(f"model={exported}", f"output={tmp_path}/file", f"input={path}", "network=sar_only")
    with pytest.raises(ConfigError, match="a model file holds one checkpoint; leave out checkpoint='best'"):
        predict(f"model={exported}", f"output={tmp_path}/file", f"input={path}", "checkpoint=best")
    with pytest.raises(SystemExit):
        predict(f"model={exported}", f"workdir={workdir}", f"output={tmp_path}/file", f"input={path}")


def test_evaluate_takes_the_file_and_a_data_set(workdir, exported, scenes, scenes_dir, tmp_path, capsys):
    name = os.path.relpath(os.path.dirname(scenes.directory), scenes_dir)
    flags = [f"--model={exported}/student.safetensors", f"--data={name}", f"--data_dir={scenes_dir}", "--panels=1"]

    def run(*more):
        evaluate.main(evaluate.make_parser().parse_args([*flags, *more]))

    run(f"--output={tmp_path}/scores", "--polygons")
    frame = hfd_jax.read_evaluation(tmp_path / "scores")
    (row,) = frame.to_dict("records")
    assert row["network"] == "student" and row["pixels"] + row["ignored"] == 10 * 64 * 64
    student, hits = hfd_jax.load(exported), 0
    for tile in scenes.source("test"):
        hits += (student.predict(tile["sar"])[0] == tile["label"]).sum()
    assert row["accuracy"] == pytest.approx(hits / row["pixels"], abs=1e-3), "near-ties"
    assert "HFD student (SAR)" in capsys.readouterr().out
    assert len(os.listdir(tmp_path / "scores" / "figures")) == 2
    with pytest.raises(WorkdirError, match="is the workdir of a run; choose another --output"):
        run(f"--output={workdir}")
    with pytest.raises(ConfigError, match="also give --data, the data set, and --output"):
        run()
    with pytest.raises(ConfigError, match="--stage applies only to --workdir"):
        run(f"--output={tmp_path}/scores", "--stage=student")
    with pytest.raises(ConfigError, match="--batch_size=3: expected a multiple of the 8 devices"):
        run(f"--output={tmp_path}/scores", "--batch_size=3")
