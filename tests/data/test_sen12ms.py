"""SEN12MS and DFC2020: a small tree in the published layout, the hold-out list, a real pair."""

import numpy as np
import pytest
import rasterio

from hfd_jax.core.errors import DataError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data import catalogue, sen12ms
from hfd_jax.data.builder import prepare
from hfd_jax.data.rasters import check_same_grid, read_image, valid_pixels
from hfd_jax.data.sen12ms import Dfc2020, Dfc2020Source, Sen12ms, Sen12msSource, index_table, split_of
from tests.conftest import ROOT
from tests.trees import Sen12msTree, write_raster

DATA = ROOT.parent / "shared" / "data"
SCENES = ("ROIs1158_spring/s1_63", "ROIs1868_summer/s1_146", "ROIs1868_summer/s1_8", "ROIs2017_winter/s1_1")
# Which of the first scenes validates, so that the small tree has all three splits.
VALIDATION = next(f"ROIs1970_fall/s1_{n}" for n in range(1, 100) if split_of(f"ROIs1970_fall/s1_{n}") == "validation")


@pytest.fixture
def tree(tmp_path):
    return Sen12msTree(tmp_path, [*SCENES, VALIDATION])


def test_patches_are_read_by_band_and_class(tree):
    source = Sen12msSource(str(tree.root))
    assert source.facts.class_names[:3] == ("forest", "shrubland", "savanna") and len(source.facts.class_names) == 10
    tile = source.read("ROIs1158_spring/s1_63/ROIs1158_spring_s1_63_p1.tif")
    images = tree.images(1)
    np.testing.assert_array_equal(tile.sar, images["s1"])
    np.testing.assert_array_equal(tile.eo, images["s2"])
    assert tile.id == "ROIs1158_spring_63_p1" and tile.eo.dtype == np.uint16 and tile.sar.dtype == np.float32
    # Evergreen needleleaf forest (1), woody savanna (8), cropland mosaic (14), water (17), unknown (0).
    codes = images["lc"][..., 0]
    for code, expected in ((1, 0), (8, 2), (14, 5), (17, 9), (0, IGNORE_LABEL)):
        assert set(tile.label[codes == code]) == {expected}


@pytest.mark.parametrize(
    ("classes", "count", "water"), [("simplified", 10, 9), ("no_savanna", 9, 8), ("dfc2020", 8, 7)]
)
def test_class_schemes(tree, classes, count, water):
    source = Sen12msSource(str(tree.root), classes=classes)
    label, codes = source.read(source.keys()["train"][0]).label, tree.images(0)["lc"][..., 0]
    assert len(source.facts.class_names) == len(source.facts.class_colours) == count
    assert set(label[codes == 17]) == {water} and source.facts.class_names[water] == "water"
    assert set(np.unique(label)) == {*range(count), IGNORE_LABEL}
    left_out = {8: "savanna", 15: "snow"}
    for code, name in left_out.items():
        assert (set(label[codes == code]) == {IGNORE_LABEL}) == (name not in source.facts.class_names)


def test_igbp_table():
    table = index_table(sen12ms.IGBP_TO_SIMPLIFIED, "simplified")
    assert table.tolist() == [255, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 5, 7, 8, 9]


@pytest.mark.skipif(not DATA.is_dir(), reason="the official list is not here")
def test_hold_out_is_the_official_one():
    lines = (DATA / "splits" / "SEN12MS_holdOutScenes.txt").read_text().split()
    assert len(lines) == 26 and set(lines) == sen12ms.HOLD_OUT_SCENES


def test_a_tenth_of_the_scenes_is_for_validation():
    scenes = [f"{season}/s1_{number}" for season in sen12ms.SEASONS for number in range(1, 150)]
    splits = [split_of(scene) for scene in scenes]
    assert splits.count("test") == 26
    # 574 scenes, each with probability a tenth: 57 +- 7.2.
    assert 36 < splits.count("validation") < 79


def test_prepared_set_masks_nan_and_leaves_the_broken_patch_out(tree, tmp_path):
    broken = "ROIs1868_summer", "146", 202
    images = tree.images(50)
    for source in ("s1", "s2", "lc"):
        write_raster(tree.file(*broken, source), images[source], (560000.0, 5750000.0), 10.0)
    part = tree.images(2)["s1"]
    part[:4] = np.nan
    write_raster(tree.file("ROIs1868_summer", "146", 0, "s1"), part, (502000.0, 5750000.0), 10.0)
    directory = prepare(Sen12ms, Sen12msSource(str(tree.root)), str(tmp_path / "data"))
    dataset = catalogue.read_dataset(directory)
    assert dataset.sizes == {"train": 6, "validation": 2, "test": 2}
    assert dataset.left_out == {"with NaN, as in all published lists": 1}
    tiles = {tile["id"].decode(): tile for tile in (dataset.source("train")[i] for i in range(6))}
    assert not any("p202" in name for name in tiles)
    tile = tiles["ROIs1868_summer_146_p0"]
    assert not tile["sar_valid"][:4].any() and tile["sar_valid"][4:].all() and tile["eo_valid"].all()
    assert np.isfinite(dataset.statistics.sar.mean).all()
    assert dataset.statistics.class_pixels[2] > 0 and len(dataset.facts.eo_bands) == 13


def test_dfc2020_has_no_training_split(tmp_path):
    scenes = ["ROIs0000_validation/s1_validation", "ROIs0000_test/s1_0"]
    tree = Sen12msTree(tmp_path, scenes, sources=("s1", "s2", "lc", "dfc"))
    source = Dfc2020Source(str(tree.root), classes="dfc2020")
    dataset = catalogue.read_dataset(prepare(Dfc2020, source, str(tmp_path / "data")))
    assert dataset.sizes == {"validation": 2, "test": 2}
    assert dataset.facts.class_names[-1] == "water" and len(dataset.facts.class_names) == 8
    label, codes = dataset.source("test")[0]["label"], tree.images(2)["dfc"]
    assert set(label[codes == 10]) == {7} and set(label[(codes == 3) | (codes == 8) | (codes == 0)]) == {IGNORE_LABEL}
    key = source.keys()["test"][0]
    write_raster(
        tree.root / sen12ms.swap_source(key, "s1", "dfc"), np.stack([codes, codes], -1), (501000.0, 5.0e6), 10.0
    )
    with pytest.raises(DataError, match=r"dfc_.*: 2 bands; expected 1 \(class\)"):
        source.read(key)


def test_unexpected_files_are_named_or_ignored(tree):
    (tree.root / "ROIs1158_spring" / "s1_63.tar").write_bytes(b"")
    source = Sen12msSource(str(tree.root))
    key = source.keys()["train"][0]
    lc = tree.root / sen12ms.swap_source(key, "s1", "lc")
    with rasterio.open(tree.root / key) as raster:
        origin = (raster.transform.c, raster.transform.f)
    write_raster(lc, tree.images(0)["lc"][..., :2], origin, 10.0)
    with pytest.raises(DataError, match=r"lc_.*: 2 bands; expected 4 \(IGBP"):
        source.read(key)
    write_raster(lc, tree.images(0)["lc"].astype(np.float32), origin, 10.0)
    with pytest.raises(DataError, match=r"lc_.*: type float32; expected integers"):
        source.read(key)


def test_mistakes_are_named(tree):
    source = Sen12msSource(str(tree.root))
    key = source.keys()["train"][0]
    lc = tree.root / sen12ms.swap_source(key, "s1", "lc")
    bad = tree.images(0)["lc"]
    bad[0, 0, 0] = 18
    write_raster(lc, bad, (501000.0, 5750000.0), 10.0)
    with pytest.raises(DataError, match="pixels off the grid of .*s1_"):
        source.read(key)
    with rasterio.open(tree.root / key) as raster:
        origin = (raster.transform.c, raster.transform.f)
    write_raster(lc, bad, origin, 10.0)
    with pytest.raises(DataError, match=r"lc_.*tif: label code 18 is invalid; expected 0 \(unknown\) to 17"):
        source.read(key)
    lc.unlink()
    with pytest.raises(DataError, match=r"_lc_.*tif: no such file"):
        source.read(key)
    (tree.root / key).unlink()
    again = Sen12msSource(str(tree.root))
    assert key in again.keys()["train"], "a patch without Sentinel-1 is not dropped silently"
    with pytest.raises(DataError, match=r"_s1_.*tif: no such file"):
        again.read(key)
    with pytest.raises(DataError, match="classes is 'simple'; did you mean 'simplified'"):
        Sen12msSource(str(tree.root), classes="simple")
    with pytest.raises(DataError, match="contains none of ROIs1158_spring"):
        Sen12msSource(str(tree.root / "ROIs1158_spring"))


@pytest.mark.skipif(not DATA.is_dir(), reason="the real samples are not here")
def test_real_pair():
    folder = DATA / "sen12mscr_scene19"
    sar, grid = read_image(str(folder / "ROIs1868_summer_s1_19_p30.tif"), bands=sen12ms.SAR_BANDS)
    eo, eo_grid = read_image(str(folder / "ROIs1868_summer_s2_cloudy_19_p30.tif"), bands=sen12ms.EO_BANDS)
    check_same_grid("s2", eo_grid, "s1", grid)
    assert sar.shape == (256, 256, 2) and sar.dtype == np.float32 and eo.shape == (256, 256, 13)
    assert eo.dtype == np.uint16 and grid["crs"].to_epsg() == 32631
    assert valid_pixels(sar, None).all()
    assert -35 < sar[..., 1].mean() < sar[..., 0].mean() < 0, "dB, cross-polarised below co-polarised"
    assert split_of("ROIs1868_summer/s1_19") == "test"
