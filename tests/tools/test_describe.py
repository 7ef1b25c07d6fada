"""tools.describe drafts a description that check_data accepts after few corrections."""

import json

import numpy as np
import pytest

from hfd_jax.core.errors import DataError, WorkdirError
from hfd_jax.data.folder import FolderSource
from tests.data.test_recipes import bright, ombria, sen1floods11
from tests.rasters import Pairs, write
from tools import describe


def described(root, *flags):
    describe.main(describe.make_parser().parse_args([str(root), *flags]))
    return json.loads((root / "dataset.json").read_text())


def test_the_plain_layout(tmp_path, capsys):
    pairs = Pairs(tmp_path / "raw")
    text = described(pairs.root)
    assert text["sar"]["files"] == "sar/{id}.tif" and text["sar"]["unit"] == "db" and len(text["sar"]["bands"]) == 2
    assert text["eo"]["files"] == "eo/{id}.tif" and text["eo"]["bands"] == ["R", "G", "B"]
    assert [entry["code"] for entry in text["label"]["classes"]] == [0, 1]
    assert text["split"] == {"by": "list", "train": "train.txt", "test": "test.txt"}
    assert "tools.check_data" in capsys.readouterr().out
    assert {split: len(keys) for split, keys in FolderSource(str(pairs.root)).keys().items()} == {"train": 2, "test": 2}
    with pytest.raises(WorkdirError, match="dataset.json: exists; --overwrite"):
        described(pairs.root)


def test_published_layouts(tmp_path):
    sen1floods11(tmp_path / "s")
    text = described(tmp_path / "s")
    hand = "data/flood_events/HandLabeled"
    assert text["sar"]["files"] == f"{hand}/S1Hand/{{id}}_S1Hand.tif" and text["sar"]["unit"] == "db"
    assert text["eo"]["files"] == f"{hand}/S2Hand/{{id}}_S2Hand.tif" and len(text["eo"]["bands"]) == 13
    assert text["label"]["files"] == f"{hand}/LabelHand/{{id}}_LabelHand.tif" and text["label"]["ignore"] == [-1]
    assert text["split"]["validation"] == "splits/flood_handlabeled/flood_valid_data.csv"
    bright(tmp_path / "b")
    text = described(tmp_path / "b")
    assert text["sar"]["files"].startswith("{folder}/post-event/") and text["sar"]["unit"] == "raw"
    assert text["split"] == {"by": "field", "field": "folder", "train": "train", "validation": "val", "test": "test"}
    assert FolderSource(str(tmp_path / "b")).keys().keys() == {"train", "validation", "test"}
    ombria(tmp_path / "o")
    text = described(tmp_path / "o")
    assert [entry["code"] for entry in text["label"]["classes"]] == [0, 255]
    assert text["sar"]["files"] == [f"OmbriaS1/{{folder}}/{part}/S1_{part.lower()}_{{id}}.png" for part in ("AFTER", "BEFORE")]  # fmt: skip


def test_one_scene_with_a_vector_file(tmp_path):
    write(tmp_path / "s1.tif", np.random.default_rng(0).normal(-12, 3, (64, 64, 2)).astype(np.float32))
    write(tmp_path / "s2.tif", np.random.default_rng(0).integers(1, 250, (64, 64, 3)).astype(np.uint8))
    (tmp_path / "cover.gpkg").touch()
    text = described(tmp_path)
    assert (
        text["sar"]["files"] == "s1.tif" and text["label"]["files"] == "cover.gpkg" and text["split"]["by"] == "blocks"
    )


def test_a_folder_without_pairs_is_refused(tmp_path):
    write(tmp_path / "sar/a.tif", np.full((8, 8, 2), -9, np.float32))
    with pytest.raises(DataError, match=r"found sar/a.tif; expected rasters of SAR and of EO"):
        described(tmp_path)
