"""GeoTIFF folders: the tiles they yield, and the error message for each mistake."""

import copy
import json
import os

import numpy as np
import pytest
import rasterio
import rasterio.warp
from rasterio.transform import Affine, from_origin

from hfd_jax.core.errors import DataError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data import catalogue
from hfd_jax.data.builder import prepare
from hfd_jax.data.folder import Folder, FolderSource
from hfd_jax.data.rasters import read_image

DESCRIPTION = {
    "name": "toy",
    "sar": {"bands": ["VV", "VH"], "unit": "db"},
    "eo": {"bands": ["R", "G", "B"], "nodata": 0},
    "label": {
        "ignore": [0],
        "classes": [{"code": 10, "name": "land"}, {"code": 20, "name": "water", "colour": [0, 0, 200]}],
    },
    "look_axis": "x",
    "split": {"by": "list", "train": "train.txt", "test": "test.txt"},
}


def write(path, array, crs="EPSG:32631", origin=(500000.0, 5750000.0), pixel=10.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = array.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=bands, dtype=array.dtype, crs=crs,
        transform=from_origin(*origin, pixel, pixel),
    ) as raster:  # fmt: skip
        raster.write(array)


class Toy:
    """A folder of three pairs of 24 x 20 pixels: a and b (labelled) and c (without label)."""

    def __init__(self, root):
        self.root, self.text = root, copy.deepcopy(DESCRIPTION)
        rng = np.random.default_rng(0)
        self.sar = rng.normal(-12, 3, (2, 24, 20)).astype(np.float32)
        self.eo = rng.integers(1, 255, (3, 24, 20)).astype(np.uint8)
        self.label = rng.choice([0, 10, 20], (1, 24, 20)).astype(np.uint8)
        for number, name in enumerate("abc"):
            origin = (500000.0 + 10000 * number, 5750000.0)
            write(root / "sar" / f"{name}.tif", self.sar, origin=origin)
            write(root / "eo" / f"{name}.tif", self.eo, origin=origin)
            if name != "c":
                write(root / "label" / f"{name}.tif", self.label, origin=origin)
        (root / "train.txt").write_text("a\nc.tif\n")
        (root / "test.txt").write_text("b\n")

    def source(self):
        (self.root / "dataset.json").write_text(json.dumps(self.text))
        return FolderSource(str(self.root))

    def read_all(self):
        source = self.source()
        return {key.id: source.read(key) for keys in source.keys().values() for key in keys}


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


def test_tiles_are_read_as_described(toy):
    source = toy.source()
    keys = source.keys()
    assert {split: [k.name for k in ks] for split, ks in keys.items()} == {
        "train": ["a"],
        "unlabelled": ["c"],
        "test": ["b"],
    }
    tile = source.read(keys["test"][0])
    np.testing.assert_array_equal(tile.sar, np.moveaxis(toy.sar, 0, -1))
    np.testing.assert_array_equal(tile.eo, np.moveaxis(toy.eo, 0, -1))
    table = {0: IGNORE_LABEL, 10: 0, 20: 1}
    np.testing.assert_array_equal(tile.label, np.vectorize(table.get)(toy.label[0]))
    assert tile.crs == "EPSG:32631" and tile.transform == (10.0, 0.0, 510000.0, 0.0, -10.0, 5750000.0)
    assert source.read(keys["unlabelled"][0]).label is None
    assert source.facts.class_names == ("land", "water") and source.facts.pixel_size == 10


def test_prepared_folder_reads_back(toy, tmp_path):
    source = toy.source()
    dataset = catalogue.read_dataset(prepare(Folder, source, str(tmp_path / "data")))
    assert dataset.sizes == {"train": 1, "unlabelled": 1, "test": 1}
    np.testing.assert_array_equal(dataset.source("test")[0]["sar"], np.moveaxis(toy.sar, 0, -1))
    assert (dataset.source("unlabelled")[0]["label"] == IGNORE_LABEL).all()
    assert catalogue.find_dataset("folder/toy", str(tmp_path / "data")).facts == dataset.facts


def test_nodata_and_nan_are_masked(toy):
    toy.sar[0, 3, 4] = np.nan
    toy.eo[:, 5, 6] = 0
    toy.eo[0, 7, 8] = 0  # black in one band only: valid
    write(toy.root / "sar/a.tif", toy.sar)
    write(toy.root / "eo/a.tif", toy.eo)
    tile = toy.read_all()["a_0_0"]
    assert not tile.sar_valid[3, 4] and tile.sar_valid.sum() == 24 * 20 - 1
    assert not tile.eo_valid[5, 6] and tile.eo_valid[7, 8] and tile.eo_valid.sum() == 24 * 20 - 1


def test_linear_power_becomes_db(toy):
    toy.text["sar"]["unit"] = "linear"
    for name in "abc":
        write(
            toy.root / f"sar/{name}.tif", 10 ** (toy.sar / 10), origin=(500000.0 + 10000 * "abc".index(name), 5750000.0)
        )
    tile = toy.read_all()["a_0_0"]
    np.testing.assert_allclose(tile.sar, np.moveaxis(toy.sar, 0, -1), atol=1e-4)


def test_negative_linear_power_is_refused(toy):
    toy.text["sar"]["unit"] = "linear"
    with pytest.raises(DataError, match=r"sar/a.tif: values down to -.*expected 0 or more, since the unit 'linear'"):
        toy.read_all()


def test_offset_per_tile_and_for_all(toy):
    toy.text["eo"]["offset"] = {"b": -100}
    tiles = toy.read_all()
    assert tiles["b_0_0"].eo.dtype == np.float32
    np.testing.assert_array_equal(tiles["b_0_0"].eo, np.moveaxis(toy.eo, 0, -1) - 100.0)
    np.testing.assert_array_equal(tiles["a_0_0"].eo, np.moveaxis(toy.eo, 0, -1))


def test_split_by_columns_and_by_longitude(toy):
    toy.text["split"] = {"by": "columns", "train": [0, 0.6], "test": [0.6, 1]}
    (toy.root / "sar/c.tif").unlink()
    (toy.root / "eo/c.tif").unlink()
    tiles = toy.read_all()
    assert tiles["a_0_0"].sar.shape == (24, 12, 2) and tiles["a_0_12"].sar.shape == (24, 8, 2)
    np.testing.assert_array_equal(tiles["a_0_12"].eo, np.moveaxis(toy.eo, 0, -1)[:, 12:])
    assert tiles["a_0_12"].transform[2] == 500000.0 + 12 * 10
    toy.text["split"] = {"by": "longitude", "train": [3.0, 3.05], "test": [3.05, 4.0]}  # a at 3.00, b at 3.14 degrees
    assert {k: [x.name for x in v] for k, v in toy.source().keys().items()} == {"train": ["a"], "test": ["b"]}


@pytest.mark.parametrize("across", [[179.9, 180.1], [-180.1, -179.9]])
def test_a_tile_on_the_antimeridian_is_in_the_split_around_it(tmp_path, across):
    """UTM zone 1; the middle tile crosses 180 degrees: the mean of its west and east bound is 0."""
    toy, crs = Toy(tmp_path), "EPSG:32601"
    for name, longitude in (("a", 179.95), ("b", 180.0), ("c", -179.0)):
        (x,), (y,) = rasterio.warp.transform("EPSG:4326", crs, [longitude], [-17.0])
        for kind, array in (("sar", toy.sar), ("eo", toy.eo), ("label", toy.label)):
            write(tmp_path / kind / f"{name}.tif", array, crs, (x - 100, y + 120))
    toy.text["split"] = {"by": "longitude", "train": across, "test": [-179.5, -178], "validation": [-1, 1]}
    keys = toy.source().keys()
    assert {split: [key.name for key in of_split] for split, of_split in keys.items()} == {
        "train": ["a", "b"],
        "test": ["c"],
    }
    toy.text["split"]["test"] = [-180, -179.9]
    with pytest.raises(DataError, match=r"split.train and split.test overlap"):
        toy.source()


@pytest.mark.parametrize(("rows", "columns"), [(-1, 1), (1, -1), (-1, -1)])
def test_tiles_stored_from_south_to_north_are_turned(toy, rows, columns):
    """The radar would look from the other side in them."""
    expected = toy.read_all()["b_0_0"]
    a, _, c, _, e, f = expected.transform
    transform = Affine(a * columns, 0, c if columns > 0 else c + 20 * a, 0, e * rows, f if rows > 0 else f + 24 * e)
    for kind, array in (("sar", toy.sar), ("eo", toy.eo), ("label", toy.label)):
        write(toy.root / kind / "b.tif", array[:, ::rows, ::columns])
        with rasterio.open(toy.root / kind / "b.tif", "r+") as raster:
            raster.transform = transform
    found = toy.read_all()["b_0_0"]
    assert found.transform == expected.transform and found.crs == expected.crs
    for name in ("sar", "eo", "label", "sar_valid", "eo_valid"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_name_that_is_no_utf8_is_named(toy):
    os.rename(toy.root / "sar" / "a.tif", os.fsencode(toy.root / "sar") + b"/M\xfcnchen.tif")
    with pytest.raises(DataError, match=r"sar/M.*nchen.tif: the name is not UTF-8; rename the file"):
        toy.source()


def test_text_files_are_utf8_with_or_without_a_mark(toy):
    """Windows editors begin a file with a byte order mark, and end lines with two characters."""
    toy.text["label"]["classes"][0]["name"] = "Wälder"
    for name in ("train.txt", "test.txt"):
        path = toy.root / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    toy.source()
    text = json.dumps(toy.text, ensure_ascii=False)
    (toy.root / "dataset.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    source = FolderSource(str(toy.root))
    assert source.facts.class_names == ("Wälder", "water") and [key.name for key in source.keys()["test"]] == ["b"]
    (toy.root / "test.txt").write_bytes(b"M\xfcnchen\n")
    with pytest.raises(DataError, match=r"test.txt: is not UTF-8 .*; save it as UTF-8"):
        FolderSource(str(toy.root))
    (toy.root / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"dataset.json: is not UTF-8"):
        FolderSource(str(toy.root))


def test_large_rasters_are_stored_in_blocks(toy):
    big = np.full((2, 1100, 1030), -10, np.float32)
    write(toy.root / "sar/a.tif", big)
    write(toy.root / "eo/a.tif", np.ones((3, 1100, 1030), np.uint8))
    write(toy.root / "label/a.tif", np.full((1, 1100, 1030), 10, np.uint8))
    tiles = [t for t in toy.read_all().values() if t.id.startswith("a_")]
    assert len(tiles) == 4 and max(max(t.sar.shape) for t in tiles) <= 1024
    assert sum(t.sar.shape[0] * t.sar.shape[1] for t in tiles) == 1100 * 1030


def remove(path):
    return lambda toy: (toy.root / path).unlink()


def change(*path, to):
    def apply(toy):
        place = toy.text
        for key in path[:-1]:
            place = place[key]
        if to is None:
            place.pop(path[-1])
        else:
            place[path[-1]] = to

    return apply


def rewrite(path, bands, dtype="float32", value=1, size=(24, 20), **kwargs):
    return lambda toy: write(toy.root / path, np.full((bands, *size), value, dtype), **kwargs)


def truncate(path):
    def apply(toy):
        content = (toy.root / path).read_bytes()
        (toy.root / path).write_bytes(content[: len(content) // 2])

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("eo/b.tif"), r"eo/b.tif: no such file"),
        (remove("sar/b.tif"), r"sar/b.tif: no such file"),
        (remove("label/b.tif"), r"label/b.tif: missing; only training tiles may lack a label"),
        (remove("train.txt"), r"train.txt: missing;.*refers to it as a split list"),
        (lambda toy: (toy.root / "test.txt").write_text("zzz"), r"test.txt: lists 'zzz', but .*sar/zzz.tif does not exist"),
        (rewrite("sar/a.tif", 3), r"sar/a.tif: 3 bands; expected 2 \(VV, VH\)"),
        (rewrite("eo/a.tif", 3, "uint8", size=(24, 21)), r"eo/a.tif: \(24, 21\) pixels \(rows, columns\).*\(24, 20\)"),
        (rewrite("eo/a.tif", 3, "uint8", crs="EPSG:32632"), r"eo/a.tif: CRS EPSG:32632; .*sar/a.tif has EPSG:32631"),
        (rewrite("eo/a.tif", 3, "uint8", origin=(500006.0, 5750000.0)), r"eo/a.tif: 0.60 pixels off the grid of .*sar/a.tif"),
        (rewrite("eo/a.tif", 3, "uint8", pixel=10.5), r"eo/a.tif: 1.20 pixels off the grid"),
        (rewrite("label/a.tif", 1, "uint8", 30), r"label/a.tif: label code 30 is unknown; .* lists \[0, 10, 20\]"),
        (truncate("sar/a.tif"), r"sar/a.tif: (damaged or truncated|cannot be read)"),
        (lambda toy: (toy.root / "eo/a.tif").write_bytes(b"no raster"), r"eo/a.tif: cannot be read as a raster"),
        (change("sar", "unit", to="decibel"), r"sar.unit is 'decibel'; .*expected one of: db, linear, raw"),
        (change("look_axis", to="z"), r"look_axis is 'z'; expected one of: x, y, any"),
        (change("sar", "band", to=["VV"]), r"sar.band is unknown; did you mean 'bands'"),
        (change("eo", "bands", to=None), r"eo.bands is missing"),
        (change("label", "classes", to=[{"code": 1, "name": "a"}]), "label.classes needs at least two classes"),
        (change("label", "classes", to=[{"code": 1}, {"code": 2}]), r"label.classes\[0\] is {'code': 1}; expected a code and a name"),
        (change("label", "ignore", to=[10]), r"label code 10 is both a class and ignored"),
        (change("label", "ignore", to=[3.5]), r"label.ignore has 3.5; expected an integer"),
        (change("eo", "offset", to={"aa": 5}), r"eo.offset has the unknown tile 'aa'; .*expected one of: a, b, c"),
        (change("split", to={"by": "list", "train": [0, 1], "test": [1, 2]}), r"split.train is \[0, 1\]; expected the name of a file, or a list of them, since split.by is 'list'"),
        (change("split", to={"by": "longitude", "train": "a.txt", "test": "b.txt"}), r"split.train is 'a.txt'; expected a pair of numbers \[start, stop\], since split.by is 'longitude'"),
        (change("split", to={"by": "columns", "train": [0, 0.6], "test": [0.5, 1]}), r"split.train and split.test overlap"),
        (change("split", to={"by": "columns", "train": [0, 0.5], "test": [0.5, 2]}), r"split.test is \[0.5, 2\]; expected"),
        (lambda toy: (toy.root / "test.txt").write_text("a\nb\n"), r"test.txt: 'a' is also in split 'train'"),
        (rewrite("eo/b.tif", 3, "uint16", 3000, origin=(510000.0, 5750000.0)), r"eo/b.tif: type uint16; expected uint8, as in .*eo/a.tif"),
        (change("name", to="../elsewhere"), r"name is '../elsewhere'; expected letters, digits"),
        (change("split", "by", to="longitud"), r"split.by is 'longitud'; did you mean 'longitude'"),
    ],
)  # fmt: skip
def test_every_mistake_is_named(toy, damage, message):
    damage(toy)
    with pytest.raises(DataError, match=message):
        toy.read_all()


def test_nodata_tag_of_the_raster_is_respected(toy):
    toy.text["eo"].pop("nodata")
    with rasterio.open(toy.root / "eo/a.tif", "r+") as raster:
        raster.nodata = 7
        image = raster.read()
        image[:, 2, 3] = 7
        raster.write(image)
    assert not toy.read_all()["a_0_0"].eo_valid[2, 3]


def test_tiles_without_a_split_are_counted(toy):
    (toy.root / "train.txt").write_text("a\n")
    assert toy.source().left_out == {"that belong to no split, for example c": 1}


def test_half_a_pixel_of_offset_is_accepted(toy):
    write(toy.root / "eo/a.tif", toy.eo, origin=(500004.9, 5750000.0))
    toy.read_all()


def test_missing_or_broken_description(toy):
    with pytest.raises(DataError, match="dataset.json: missing; expected the description of the data set"):
        FolderSource(str(toy.root))
    (toy.root / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="dataset.json: not valid JSON"):
        FolderSource(str(toy.root))


def test_linear_power_declared_as_db_is_refused(toy, tmp_path):
    """The values lie within the dB range, but the absence of negative values reveals the wrong unit."""
    for name in "abc":
        write(
            toy.root / f"sar/{name}.tif", 10 ** (toy.sar / 10), origin=(500000.0 + 10000 * "abc".index(name), 5750000.0)
        )
    source = toy.source()
    with pytest.raises(DataError, match="backscatter in dB is mostly negative. Is the unit 'linear' or 'raw'"):
        prepare(Folder, source, str(tmp_path / "data"))


def test_a_changed_folder_differs_from_the_prepared_one(toy, tmp_path):
    data = str(tmp_path / "data")
    prepare(Folder, toy.source(), data)
    assert prepare(Folder, toy.source(), data)
    toy.text["look_axis"] = "y"
    with pytest.raises(
        DataError,
        match=r"exists, prepared from different data or settings \(facts.look_axis, settings.description\)",
    ):
        prepare(Folder, toy.source(), data)
    directory = prepare(Folder, toy.source(), data, overwrite=True)
    assert catalogue.read_dataset(directory).facts.look_axis == "y"
    write(toy.root / "sar/a.tif", toy.sar[:, :20], origin=(500000.0, 5750000.0))
    with pytest.raises(DataError, match="settings.files"):
        prepare(Folder, toy.source(), data)
    # The replacement fails, so the old data set is kept.
    with pytest.raises(DataError, match="eo/a.tif"):
        prepare(Folder, toy.source(), data, overwrite=True)
    assert catalogue.read_dataset(directory).size("test") == 1


def test_wrong_value_range_stops_the_preparation(toy, tmp_path):
    write(toy.root / "sar/a.tif", np.full((2, 24, 20), 5000, np.float32))
    source = toy.source()
    with pytest.raises(DataError, match="tile a_0_0: SAR values from 5000 to 5000.*Is the unit 'linear' or 'raw'"):
        prepare(Folder, source, str(tmp_path / "data"))
    assert catalogue.list_datasets(str(tmp_path / "data")) == []


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((300_000, 20), r"has \(20, 300000\) pixels \(rows, columns\); expected at most 200000"),
        ((100_000, 100_000), r"GiB to read at once; expected at most 2 GiB"),
    ],
)
def test_a_raster_that_claims_an_absurd_size_takes_no_memory(tmp_path, size, message):
    path = tmp_path / "huge.tif"
    width, height = size
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=1, dtype="uint8", crs="EPSG:32631",
        transform=from_origin(5e5, 5e6, 1, 1), SPARSE_OK=True, BIGTIFF="YES", tiled=True,
    ):  # fmt: skip
        pass
    assert path.stat().st_size < 50_000_000
    with pytest.raises(DataError, match=message):
        read_image(str(path))
