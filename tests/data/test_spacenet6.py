"""SpaceNet 6: a small tree in the published layout, and the split on the real list of tiles."""

import csv
import json
import pickle

import numpy as np
import pytest

from hfd_jax.core.errors import DataError
from hfd_jax.data import catalogue, spacenet6
from hfd_jax.data.builder import prepare
from hfd_jax.data.rasters import check_same_grid, read_image, valid_pixels
from hfd_jax.data.spacenet6 import Spacenet6, Spacenet6Source, split_of
from tests.conftest import ROOT
from tests.trees import Spacenet6Tree, write_raster

TILES = ROOT.parent / "shared" / "data" / "splits" / "spacenet6_tiles.csv"
# One tile in each tenth of the area, and one more in the west.
EASTINGS = [591640 + 452 * k + 10 for k in range(10)] + [591660]


@pytest.fixture
def tree(tmp_path):
    return Spacenet6Tree(tmp_path, EASTINGS, products=("PS-RGB", "PS-RGBNIR"))


def building(label):
    rows, columns = np.nonzero(label)
    return (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) if len(rows) else None


def test_tiles_of_southern_strips_are_turned_by_position(tree):
    source = Spacenet6Source(str(tree.root), splitting="baseline")
    for number, name in enumerate(tree.names):
        tile = source.read(name)
        sar, eo = tree.images(number)
        turn = number % 2 == 1
        assert tile.rotated == turn
        back = (lambda x: x[::-1, ::-1]) if turn else (lambda x: x)
        np.testing.assert_array_equal(back(tile.sar), sar)
        np.testing.assert_array_equal(back(tile.eo), eo[..., :3])
        assert not back(tile.sar_valid)[:10].any() and back(tile.sar_valid)[10:].all() and tile.eo_valid.all()
        assert building(back(tile.label)) == (None if number % 3 == 2 else (6, 12, 15, 30))
        assert tile.sar.dtype == np.float32 and tile.eo.dtype == tile.label.dtype == np.uint8


def test_the_georeference_is_rotated_too(tree):
    source = Spacenet6Source(str(tree.root))
    for number in (0, 1):
        tile = source.read(tree.names[number])
        row, column = (20, 7) if number == 0 else (60 - 1 - 20, 60 - 1 - 7)
        a, b, c, d, e, f = tile.transform
        x, y = a * (column + 0.5) + b * (row + 0.5) + c, d * (column + 0.5) + e * (row + 0.5) + f
        assert (x, y) == pytest.approx((EASTINGS[number] + 7.5 * 7.5, 5750000 - 20.5 * 7.5))


def test_footprints_from_the_summary_are_the_same(tree, tmp_path):
    plain = Spacenet6Tree(tmp_path / "plain", EASTINGS[:4], geojson=False)
    one, other = Spacenet6Source(str(tree.root)), Spacenet6Source(str(plain.root))
    assert (one.settings["labels"], other.settings["labels"]) == ("geojson", "summary")
    for name in plain.names:
        np.testing.assert_array_equal(one.read(name).label, other.read(name).label)
    # The building covers 15 x 6 pixels of 7.5 m.
    area = 15 * 6 * 7.5**2
    for root in (tree.root, plain.root):
        assert not Spacenet6Source(str(root), min_area=area + 1).read(plain.names[0]).label.any()
        assert Spacenet6Source(str(root), min_area=area - 1).read(plain.names[0]).label.any()


def test_four_bands_are_blue_first_and_checked(tree):
    source = Spacenet6Source(str(tree.root), eo_product="PS-RGBNIR")
    assert source.facts.eo_bands == ("B", "G", "R", "NIR")
    tile = source.read(tree.names[0])
    np.testing.assert_array_equal(tile.eo, tree.images(0)[1][..., [2, 1, 0, 3]])
    red_first = Spacenet6Tree(tree.root / "other", EASTINGS[:1], products=("PS-RGB", "PS-RGBNIR"))
    spoiled = red_first.file("PS-RGBNIR", red_first.names[0])
    write_raster(spoiled, red_first.images(0)[1], (EASTINGS[0], 5750000.0), 7.5)
    with pytest.raises(DataError, match=r"in the order B,G,R,NIR, band R resembles the blue .*--eo_order"):
        Spacenet6Source(str(red_first.root), eo_product="PS-RGBNIR").keys()
    named = Spacenet6Source(str(red_first.root), eo_product="PS-RGBNIR", eo_order="R,G,B,NIR")
    assert named.keys()["test"] == red_first.names and named.facts.eo_bands == ("R", "G", "B", "NIR")
    with pytest.raises(DataError, match="eo_order is 'R,G,B'; expected B,G,R,NIR in any order"):
        Spacenet6Source(str(red_first.root), eo_product="PS-RGBNIR", eo_order="R,G,B")


def test_prepared_set_has_the_splits_and_the_flag(tree, tmp_path):
    directory = prepare(Spacenet6, Spacenet6Source(str(tree.root)), str(tmp_path / "data"))
    assert directory.endswith("spacenet6/ten_fold_0/1.0.0")
    dataset = catalogue.read_dataset(directory)
    # Column 0 tests (two tiles), 5 validates; 1, 4 and 6 are left out. 2, 3, 7, 8, 9 train.
    assert dataset.sizes == {"train": 5, "validation": 1, "test": 2}
    assert dataset.shared_ground == {}
    tiles = [dataset.source("train")[i] for i in range(5)]
    assert [bool(tile["rotated"]) for tile in tiles] == [False] * 2 + [True] * 3, "in the order of the strips"
    mean = np.mean([t["sar"][t["sar_valid"]].mean() for t in tiles])
    assert np.mean(dataset.statistics.sar.mean) == pytest.approx(mean, rel=1e-5), "over valid pixels alone"
    baseline = prepare(Spacenet6, Spacenet6Source(str(tree.root), splitting="baseline"), str(tmp_path / "data"))
    assert catalogue.read_dataset(baseline).sizes == {"train": 10, "validation": 1}


@pytest.mark.skipif(not TILES.exists(), reason="the real list of tiles is not here")
def test_splits_of_the_real_tiles():
    with open(TILES) as file:
        corners = np.array([(float(row["x_ul"]), float(row["y_ul"])) for row in csv.DictReader(file)])
    baseline = [split_of(x, "baseline") for x, _ in corners]
    assert (baseline.count("train"), baseline.count("validation")) == (2696, 705)
    for fold in range(10):
        splits = np.array([split_of(x, "ten_fold", fold) or "" for x, _ in corners])
        parts = [corners[splits == split] for split in ("train", "validation", "test")]
        assert min(map(len, parts)) > 250
        for one, other in ((0, 1), (0, 2), (1, 2)):
            distance = np.abs(parts[one][:, None] - parts[other][None])
            assert not (distance < 450).all(-1).any(), "tiles are squares of 450 m"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"features": null}', "not a GeoJSON feature collection"),
        (
            '{"crs": {"properties": {"name": "EPSG:none"}}, "features": [%s]}',
            "the footprints, with CRS .* cannot be transformed to the tile",
        ),
        ('{"features": [%s]}', "the footprints, with CRS 'OGC:CRS84', cannot be transformed to the tile"),
        (
            '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[0, 0]]]}}]}',
            "the footprints, with CRS .*, cannot be transformed to the tile",
        ),
    ],
)
def test_broken_footprints_are_named(tree, text, message):
    metres = '{"geometry": {"type": "Polygon", "coordinates": [[[6e5, 5e6], [7e5, 5e6], [7e5, 6e6], [6e5, 5e6]]]}}'
    tree.file("", tree.names[0], "geojson").write_text(text.replace("%s", metres))
    with pytest.raises(DataError, match=f"tile_1.geojson: {message}"):
        Spacenet6Source(str(tree.root)).read(tree.names[0])


def test_a_damaged_raster_affects_only_its_own_tile(tree):
    for part in ("SAR-Intensity", "PS-RGB"):
        tree.file(part, tree.names[4]).write_bytes(b"")
    source = Spacenet6Source(str(tree.root))
    assert sum(map(len, source.keys().values())) + source.left_out["in columns beside those held out"] == 11
    with pytest.raises(DataError, match="tile_5.tif: cannot be read as a raster"):
        source.read(tree.names[4])


def test_a_pickled_source_contains_no_list_of_files(tree):
    source = Spacenet6Source(str(tree.root))
    before = len(pickle.dumps(source))
    assert source.keys() and source.settings and source.facts.eo_dtype == "uint8"
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 - as multiprocessing does
    assert len(pickle.dumps(source)) < before + 1000 and copy.keys() == source.keys()
    np.testing.assert_array_equal(copy.read(tree.names[0]).sar, source.read(tree.names[0]).sar)


def test_mistakes_are_named(tree):
    source = Spacenet6Source(str(tree.root))
    geojson = tree.file("", tree.names[0], "geojson")
    text = json.loads(geojson.read_text())
    geojson.write_text("{}")
    with pytest.raises(DataError, match=r"tile_1.geojson: not a GeoJSON feature collection"):
        source.read(tree.names[0])
    text["features"][0]["geometry"]["coordinates"] = [[[4.3, 51.9], [4.31, 51.9], [4.31, 51.91], [4.3, 51.9]]]
    del text["crs"]
    geojson.write_text(json.dumps(text))
    assert not source.read(tree.names[0]).label.any(), "longitude and latitude, beside the tile"
    geojson.unlink()
    with pytest.raises(DataError, match=r"tile_1.geojson: no such file; a tile without buildings needs a file"):
        source.read(tree.names[0])
    tree.file("PS-RGB", tree.names[1]).unlink()
    with pytest.raises(DataError, match=r"PS-RGB_2019.*tile_2.tif: no such file"):
        source.read(tree.names[1])
    tree.file("SAR-Intensity", tree.names[2]).unlink()
    with pytest.raises(DataError, match=r"SAR-Intensity_2019.*tile_3.tif: no such file"):
        Spacenet6Source(str(tree.root)).read(tree.names[2])
    (tree.area / "SummaryData" / "SAR_orientations.txt").write_text(f"{tree.STRIPS[0]} 0\n")
    with pytest.raises(DataError, match=r"strip 20190804111851_20190804112030 has flag None; expected 0 or 1"):
        Spacenet6Source(str(tree.root)).read(tree.names[3])
    with pytest.raises(DataError, match=r"SAR-Intensity: no such folder, and none in train/AOI_11_Rotterdam"):
        Spacenet6Source(str(tree.root / "train"))
    with pytest.raises(DataError, match="fold is 10; expected one of 0, 1"):
        Spacenet6Source(str(tree.root), fold=10)


@pytest.mark.skipif(not TILES.exists(), reason="the real samples are not here")
def test_real_pair_of_rotterdam():
    """A published 4.5 m extract: NaN outside the strip, the same ground in both files."""
    folder = TILES.parent.parent / "spacenet6_rotterdam"
    sar, grid = read_image(str(folder / "sar_masked.tif"), bands=spacenet6.SAR_BANDS)
    eo, eo_grid = read_image(str(folder / "rgb_unmasked.tif"), bands=("R", "G", "B"))
    check_same_grid("eo", eo_grid, "sar", grid)
    valid = valid_pixels(sar, None)
    assert sar.shape == (200, 200, 4) and eo.shape == (200, 200, 3) and eo.dtype == np.uint8
    assert 1 - valid.mean() == pytest.approx(0.39, abs=0.01)
    bands = sar[valid].T
    like, cross = np.corrcoef(bands[[0, 3]])[0, 1], np.corrcoef(bands[[0, 1]])[0, 1]
    assert like > cross, "HH resembles VV more than HV: the order of the bands"
    assert grid["crs"].to_epsg() == 32631 and grid["transform"].c == pytest.approx(592317.86, abs=0.01)
