"""WHU-OPT-SAR: a small tree in the published layout, and the official test list."""

import numpy as np
import pytest

from hfd_jax.core.errors import DataError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data import catalogue, whu_opt_sar
from hfd_jax.data.builder import prepare
from hfd_jax.data.whu_opt_sar import WhuOptSar, WhuOptSarSource, divide
from tests.conftest import ROOT
from tests.trees import WhuTree, write_raster

DIVISION = ROOT.parent / "shared" / "data" / "splits" / "whu_opt_sar_division.txt"
# Nine that are not in the test list, so that the eighth validates, and one that is.
SCENES = [f"NH49E0010{n}" for n in (10, 11, 12, 13, 15, 16, 18, 19, 20)] + ["NH49E001014"]


@pytest.fixture
def tree(tmp_path):
    return WhuTree(tmp_path, SCENES)


def test_scenes_are_stored_in_blocks_that_join_again(tree, tmp_path):
    dataset = catalogue.read_dataset(
        prepare(WhuOptSar, WhuOptSarSource(str(tree.root), block=32), str(tmp_path / "data"))
    )
    # 60 x 90 pixels in blocks of at most 32: 2 x 3.
    assert dataset.sizes == {"train": 8 * 6, "validation": 6, "test": 6}
    assert dataset.shared_ground == {}
    number = SCENES.index("NH49E001014")
    images = tree.images(number)
    whole = {name: np.zeros_like(np.atleast_3d(image)) for name, image in images.items()}
    for i in range(6):
        tile = dataset.source("test")[i]
        assert tile["sar"].shape == (30, 30, 1) and tile["eo"].shape == (30, 30, 4)
        row, column = (int(part) for part in tile["id"].decode().split("_")[1:])
        x, y = tile["transform"][2], tile["transform"][5]
        assert (x, y) == (500000.0 + 1000 * number + 5 * column, 3400000.0 - 5 * row)
        for name, stored in (("sar", "sar"), ("eo", "optical"), ("label", "lbl")):
            whole[stored][row : row + 30, column : column + 30] = np.atleast_3d(tile[name])
    np.testing.assert_array_equal(whole["sar"][..., 0], images["sar"])
    np.testing.assert_array_equal(whole["optical"], images["optical"])
    codes = images["lbl"]
    np.testing.assert_array_equal(whole["lbl"][..., 0], np.where(codes == 0, IGNORE_LABEL, codes // 10 - 1))
    assert dataset.facts.class_names == ("farmland", "city", "village", "water", "forest", "road", "others")


def test_a_label_without_its_last_column_is_ignored_there(tree):
    source = WhuOptSarSource(str(tree.root), block=64)
    write_raster(
        tree.root / "lbl" / f"{SCENES[0]}.tif", tree.images(0)["lbl"][:, :-1], (500000.0, 3400000.0), 5.0, "EPSG:32649"
    )
    key = (SCENES[0], (0, 60), (45, 90))
    label = source.read(key).label
    assert (label[:, -1] == IGNORE_LABEL).all()
    np.testing.assert_array_equal(label[:, :-1] == IGNORE_LABEL, tree.images(0)["lbl"][:, 45:-1] == 0)
    write_raster(
        tree.root / "lbl" / f"{SCENES[0]}.tif", tree.images(0)["lbl"][:, :-2], (500000.0, 3400000.0), 5.0, "EPSG:32649"
    )
    with pytest.raises(DataError, match=r"lbl/.*tif: \(60, 88\) pixels"):
        source.read(key)


def test_dark_water_is_valid(tree):
    images = tree.images(0)
    images["sar"][:5] = 0
    images["optical"][:2] = 0
    for folder in ("sar", "optical"):
        write_raster(tree.root / folder / f"{SCENES[0]}.tif", images[folder], (500000.0, 3400000.0), 5.0, "EPSG:32649")
    tile = WhuOptSarSource(str(tree.root)).read((SCENES[0], (0, 60), (0, 90)))
    assert not tile.sar_valid[:2].any() and tile.sar_valid[2:].all()


def test_mistakes_are_named(tree):
    source = WhuOptSarSource(str(tree.root))
    key = (SCENES[1], (0, 60), (0, 90))
    bad = tree.images(1)["lbl"]
    bad[3, 3] = 45
    write_raster(tree.root / "lbl" / f"{SCENES[1]}.tif", bad, (501000.0, 3400000.0), 5.0, "EPSG:32649")
    with pytest.raises(
        DataError, match=r"NH49E001011.tif: label code 45 is invalid; expected 0 \(background\) or one of"
    ):
        source.read(key)
    (tree.root / "sar" / f"{SCENES[1]}.tif").unlink()
    again = WhuOptSarSource(str(tree.root))
    assert any(scene == SCENES[1] for keys in again.keys().values() for scene, *_ in keys)
    with pytest.raises(DataError, match=r"sar/NH49E001011.tif: no such file"):
        again.read(key)
    with pytest.raises(DataError, match="lbl/sar: no such folder"):
        WhuOptSarSource(str(tree.root / "lbl"))


@pytest.mark.skipif(not DIVISION.exists(), reason="the official list is not here")
def test_the_test_list_is_the_official_one():
    train, test = DIVISION.read_text().split("test:")
    train, test = ([name.removesuffix(".tif") for name in part.split() if name != "train:"] for part in (train, test))
    assert set(test) == whu_opt_sar.TEST_SCENES and len(test) == 20
    parts = divide(sorted(train + test))
    assert {split: len(scenes) for split, scenes in parts.items()} == {"train": 70, "validation": 10, "test": 20}
    assert set(parts["train"]) | set(parts["validation"]) == set(train)
