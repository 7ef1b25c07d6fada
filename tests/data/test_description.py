"""dataset.json: faults, patterns, tables, splits and grids."""

import json

import numpy as np
import pyogrio
import pytest
import rasterio.warp
import shapely

from hfd_jax.core.errors import DataError
from hfd_jax.data.described.description import read_description
from hfd_jax.data.described.patterns import Folders, check_pattern, list_files
from tests.rasters import Pairs, write


@pytest.fixture
def pairs(tmp_path):
    return Pairs(tmp_path / "raw")


def faults(tmp_path, text):
    path = tmp_path / "dataset.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(DataError) as error:
        read_description(str(path))
    return str(error.value).replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("sar.nodata", "nan", "sar.nodata is 'nan'; expected a number, or null for none"),
        ("eo.nodata", [0, 0, 0], "eo.nodata is [0, 0, 0]; expected a number, or null for none"),
        ("sar.nodata", True, "sar.nodata is True; expected a number, or null for none"),
        ("sar.bands", "VV", "sar.bands is 'VV'; expected a list of band names, such as ['VV', 'VH']"),
        ("sar.bands", ["VV", "VV"], "sar.bands names 'VV' twice; expected different names"),
        ("sar.bands", [], "sar.bands is []; expected a list of band names, such as ['VV', 'VH']"),
        ("sar.band_numbers", [1, 2, 3], "sar.band_numbers is [1, 2, 3]; expected one for each of the 2 bands"),
        ("label.classes", {"0": "land"}, "label.classes is {'0': 'land'}; expected a list of classes, each with code and name"),
        ("label.ignore", 0, "label.ignore is 0; expected a list of codes"),
        ("eo.offset", "-1000", "eo.offset is '-1000'; expected a number, or an object of numbers per tile"),
        ("sar", ["VV"], "sar is ['VV']; expected an object with files, folder, bands"),
        ("look_axis", 1, "look_axis is 1; expected one of: x, y, any"),
        ("split.by", "lists", "split.by is 'lists'; did you mean 'list'?"),
        ("split", {"by": "random", "test": 2}, "split.test is 2; expected a share, more than 0 and less than 1"),
        ("split", {"by": "field", "field": "region", "train": 1, "test": 2}, "split.field is 'region'; expected one of: id, the fields of sar.files, or a table"),
        ("eo.files", "eo/{scene}.tif", "eo.files has the field {scene} in 'eo/{scene}.tif', which sar.files lacks"),
        ("eo.files", "../eo/{id}.tif", "eo.files is '../eo/{id}.tif'; expected a path below the raw folder"),
        ("eo.files", "eo/{id.tif", "eo.files is 'eo/{id.tif'; expected fields such as {id}"),
        ("eo.resample", "linear", "eo.resample is 'linear'; did you mean 'bilinear'? (expected one of: nearest, bilinear, cubic, average)"),
        ("block", 8, "block is 8; expected an integer, 32 to 4096 pixels"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_was_expected(pairs, tmp_path, place, value, message):
    parent, key = pairs.text, place
    if "." in place:
        parent, key = pairs.text[place.split(".")[0]], place.split(".")[1]
    parent[key] = value
    assert f"FILE: {message}" in faults(tmp_path, pairs.text)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"colour": "#ff0000"}, "label.classes[1].colour is '#ff0000'; expected [r, g, b], integers of 0 to 255"),
        ({"colour": [300, 0, 0]}, "label.classes[1].colour is [300, 0, 0]; expected [r, g, b]"),
        ({"name": "land"}, "label.classes has two classes of the name 'land'; expected different names"),
        ({"name": 7}, "label.classes[1].name is 7; expected text"),
        ({"code": 0}, "label.classes has the code 0 twice"),
        ({"code": 1.5}, "label.classes[1].code is 1.5; expected an integer, or a list of them"),
        ({"color": [0, 0, 0]}, "label.classes[1].color is unknown; did you mean 'colour'?"),
    ],
)
def test_a_wrong_class_is_named(pairs, tmp_path, entry, message):
    pairs.text["label"]["classes"][1] |= entry
    assert f"FILE: {message}" in faults(tmp_path, pairs.text)


def test_all_faults_are_reported_at_once(pairs, tmp_path):
    pairs.text["sar"] |= {"unit": "decibel", "nodata": "0"}
    del pairs.text["look_axis"]
    pairs.text["eo"]["offset"] = None
    text = faults(tmp_path, pairs.text)
    assert text.splitlines()[0] == "FILE: 4 faults"
    for part in ("sar.unit is 'decibel'", "sar.nodata is '0'", "look_axis is missing; expected one of: x", "eo.offset is None"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "FILE: the file is [1]; expected an object with name, sar"),
        ('{"name": "a", "name": "b"}', "FILE: 'name' is a duplicate key"),
        ('{"name": NaN}', "FILE: holds NaN, which is not JSON"),
        ("{", "FILE: not valid JSON"),
    ],
)
def test_what_is_no_description_is_said(tmp_path, text, message):
    assert message in faults(tmp_path, text)


def test_comments_and_a_byte_order_mark_are_allowed(pairs, tmp_path):
    pairs.text |= {"//": "made by hand", "//name": 1}
    (tmp_path / "d.json").write_text("\ufeff" + json.dumps(pairs.text), encoding="utf-8")
    assert read_description(str(tmp_path / "d.json")).name == "toy"


def test_offsets_beyond_the_stored_type_are_refused(pairs):
    pairs.text["eo"]["offset"] = -1000
    with pytest.raises(DataError, match="eo.offset is -1000, but .*eo/a.tif holds uint8, at most 255"):
        pairs.source()


def files(tmp_path, *names):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_patterns_find_fields_in_folders_and_names(tmp_path):
    files(tmp_path, "a/S1/x_1_VV.TIF", "b/S1/y_2_VV.tiff", "a/S1/._x_1_VV.tif", "a/S1/x_1_VH.tif", ".c/S1/z_3_VV.tif")
    listing = list_files(Folders(str(tmp_path)), "{area}/S1/{region}_{id}_VV.tif")
    assert listing.paths == {("a", "x", "1"): "a/S1/x_1_VV.TIF", ("b", "y", "2"): "b/S1/y_2_VV.tiff"}
    assert listing.searched == {"a/S1", "b/S1"}
    present = ["a/S1/x_1_VH.tif", "a/S1/x_1_VV.TIF", "b/S1/y_2_VV.tiff"]
    assert sorted(Folders(str(tmp_path)).rasters(listing.searched)) == present
    assert list_files(Folders(str(tmp_path)), "**/{id}_VH.tif").paths == {("x_1",): "a/S1/x_1_VH.tif"}
    assert list_files(Folders(str(tmp_path)), "b/*/{id}_2_*.tif").paths == {("y",): "b/S1/y_2_VV.tiff"}


def test_a_part_without_open_fields_is_compared_literally(tmp_path):
    files(
        tmp_path, "s/P1/P1_B02.tif", "s/P1/P2_B02.tif", "s/P3/P3_B02.TIFF", "s/A+(1)/A+(1)_B02.tif", "s/P4/p4_B02.tif"
    )
    assert set(list_files(Folders(str(tmp_path)), "s/{id}/{id}_B02.tif").paths) == {("P1",), ("P3",), ("A+(1)",)}
    assert list_files(Folders(str(tmp_path)), "**/P1/**/{id}_B02.tif").paths.keys() == {("P1",), ("P2",)}
    files(tmp_path, "P1/P1/a_B02.tif")
    assert list_files(Folders(str(tmp_path)), "**/P1/**/a_{id}.tif").paths == {("B02",): "P1/P1/a_B02.tif"}
    files(tmp_path, "whole/mask.PNG", "whole/mask.png.bak")
    assert list_files(Folders(str(tmp_path)), "whole/mask.png").paths == {(): "whole/mask.PNG"}


def test_two_files_of_one_tile_and_names_in_latin_1_are_refused(tmp_path):
    files(tmp_path, "sar/a.tif", "sar/a.TIF")
    with pytest.raises(DataError, match="sar/a.tif: matches 'sar/{id}.tif' with the same fields as sar/a.TIF"):
        list_files(Folders(str(tmp_path)), "sar/{id}.tif")
    (tmp_path / "eo").mkdir()
    open(bytes(tmp_path) + b"/eo/M\xfcnchen.tif", "w").close()
    with pytest.raises(DataError, match=r"eo/M\\xfcnchen.tif: the name is not UTF-8; rename the file"):
        list_files(Folders(str(tmp_path)), "eo/{id}.tif")


def test_a_name_is_the_same_composed_and_decomposed(tmp_path):
    files(tmp_path, "sar/Mu\u0308nchen.tif", "eo/M\u00fcnchen.tif")
    assert (
        list_files(Folders(str(tmp_path)), "sar/{id}.tif").paths.keys()
        == list_files(Folders(str(tmp_path)), "eo/{id}.tif").paths.keys()
    )


@pytest.mark.parametrize("pattern", ["/abs/{id}.tif", "a/../{id}.tif", "a/{id", "a**/{id}.tif", "a/{id}/", "a/{id}/**"])
def test_wrong_patterns(pattern):
    assert check_pattern(pattern)


def test_endings_in_capitals_hidden_companions_and_lists_of_any_form(pairs):
    for kind in ("sar", "eo", "label"):
        (pairs.root / kind / "b.tif").rename(pairs.root / kind / "b.TIF")
        (pairs.root / kind / "._a.tif").write_bytes(b"\0\5\x16\7" + bytes(4092))
    (pairs.root / "train.txt").write_bytes(b"\xef\xbb\xbfsar/a.TIF\r\nb.tiff\r\n")
    assert {s: [k.name for k in keys] for s, keys in pairs.source().keys().items()} == {"train": ["a", "b"], "test": ["c", "d"]}  # fmt: skip
    assert len(pairs.tiles()["train"]) == 2
    (pairs.root / "train.txt").write_bytes("M\u00fcnchen\n".encode("latin1"))
    with pytest.raises(DataError, match="train.txt: is not UTF-8 .*; save it as UTF-8"):
        pairs.source()
    (pairs.root / "train.txt").write_text("\n")
    with pytest.raises(DataError, match="train.txt: lists no tile; expected one name in each line"):
        pairs.source()


def test_labels_that_match_no_tile_are_not_taken_for_missing_ones(pairs):
    (pairs.root / "label/a.tif").rename(pairs.root / "label/a_label.tif")
    with pytest.raises(
        DataError, match=r"label/a_label.tif: matches no tile, .* while 1 tile\(s\) lack a label, for example a"
    ):
        pairs.source()
    for name in ("a_label", "b", "c", "d"):
        (pairs.root / f"label/{name}.tif").rename(pairs.root / f"label/{name}.png")
    with pytest.raises(DataError, match=r"label/{id}.tif: no such file; .*; there is, for example, label/a_label.png"):
        pairs.source()


def test_missing_labels_of_named_files_are_refused_unless_the_description_says_so(pairs):
    pairs.text["label"]["files"] = "label/{id}.tif"
    (pairs.root / "label/a.tif").unlink()
    with pytest.raises(DataError, match="label/a.tif: missing; .* if label.missing is 'unlabelled'"):
        pairs.tiles()
    pairs.text["label"]["missing"] = "unlabelled"
    assert {split: len(tiles) for split, tiles in pairs.tiles().items()} == {"train": 1, "unlabelled": 1, "test": 2}
    pairs.text["label"]["files"], pairs.text["split"] = None, {"by": "unlabelled"}
    assert {split: len(tiles) for split, tiles in pairs.tiles().items()} == {"unlabelled": 4}


def test_stray_files_are_noted(pairs):
    write(pairs.root / "label/e.tif", np.zeros((4, 4), np.uint8))
    write(pairs.root / "sar/quick.png", np.zeros((4, 4), np.uint8), crs=None)
    assert pairs.source().notes == [
        "1 label file(s) match no tile, for example label/e.tif",
        "1 raster file(s) match no pattern, for example sar/quick.png",
    ]


def test_png_files_of_two_dates_with_a_table(tmp_path):
    root = tmp_path / "png"
    for number in range(6):
        folder = "train" if number < 4 else "test"
        for part, value in (("AFTER", 10), ("BEFORE", 100), ("EO", 50)):
            image = np.full((16, 16, 3 if part == "EO" else 1), value + number, np.uint8)
            write(root / folder / part / f"{part.lower()}_{number:04}.png", image, crs=None)
        write(root / folder / "MASK" / f"mask_{number:04}.png", np.eye(16, dtype=np.uint8) * 255, crs=None)
    rows = [
        f"{k:04},{'train' if k in (0, 4) else 'val' if k == 1 else 'test'},{'' if k == 1 else k % 2}" for k in range(6)
    ]
    (root / "index.csv").write_text("\ufeffnumber,split,fold\r\n" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
    pairs = Pairs(tmp_path / "unused")
    pairs.root = root
    pairs.text |= {
        "table": {"file": "index.csv", "id": "number"},
        "sar": {"files": ["*/AFTER/after_{id}.png", "*/BEFORE/before_{id}.png"], "bands": ["after", "before"], "unit": "raw"},
        "eo": {"files": "*/EO/eo_{id}.png", "bands": ["B11", "B8", "B3"]},
        "label": {"files": "*/MASK/mask_{id}.png", "classes": [{"code": 0, "name": "other"}, {"code": 255, "name": "flood"}]},
        "split": {"by": "field", "field": "split", "train": "train", "validation": "val", "test": ["test"]},
    }  # fmt: skip
    tiles = pairs.tiles()
    assert {split: [tile.id for tile in of_split] for split, of_split in tiles.items()} == {
        "train": ["0000_0_0", "0004_0_0"], "validation": ["0001_0_0"], "test": ["0002_0_0", "0003_0_0", "0005_0_0"],
    }  # fmt: skip
    assert tiles["train"][1].sar[0, 0].tolist() == [14, 104] and tiles["train"][1].crs == ""
    np.testing.assert_array_equal(tiles["train"][1].label, np.eye(16))
    pairs.text["sar"] |= {"bands": ["before"], "band_numbers": [2]}
    assert pairs.tiles()["train"][1].sar[0, 0].tolist() == [104]
    pairs.text["split"] = {"by": "field", "field": "fold", "test": 0, "validation": "", "train": ["1"]}
    assert {split: len(of_split) for split, of_split in pairs.tiles().items()} == {
        "train": 2,
        "validation": 1,
        "test": 3,
    }
    pairs.text["split"]["train"] = 7
    with pytest.raises(DataError, match="split.train has '7', but no tile has this fold; expected one of: , 0, 1"):
        pairs.source()
    pairs.text["table"]["id"] = "nummer"
    with pytest.raises(DataError, match="index.csv: has no column 'nummer'; did you mean 'number'"):
        pairs.source()
    pairs.text["table"] = {"file": "index.csv", "id": "number"}
    pairs.text["split"] = {"by": "fold", "field": "fold", "validation": ""}
    source = pairs.source(test_fold="1")
    sizes = {split: len(keys) for split, keys in source.keys().items()}
    assert sizes == {"train": 3, "validation": 1, "test": 2} and source.name.endswith("_fold1")
    with pytest.raises(DataError, match="choose the test tiles with --test_fold, one of: 0, 1"):
        pairs.source()
    with pytest.raises(DataError, match="--test_fold=2: no tile has this fold; expected one of: 0, 1"):
        pairs.source(test_fold="2")
    pairs.text["split"] = {"by": "field", "field": "fold", "train": "0", "test": "1"}
    with pytest.raises(DataError, match="split.by is 'field'; --test_fold needs 'fold'"):
        pairs.source(test_fold="1")


def test_random_splits_keep_groups_together(pairs):
    names = [f"{region}_{k}" for region in ("x", "y", "z", "u", "v") for k in range(4)]
    pairs.names = names
    for kind, array in (("sar", pairs.sar["a"]), ("eo", pairs.eo["a"]), ("label", pairs.label["a"])):
        setattr(pairs, kind, dict.fromkeys(names, array))
        pairs.write(kind)
        pairs.text[kind]["files"] = f"{kind}/{{region}}_{{id}}.tif"
        for name in "abcd":
            (pairs.root / kind / f"{name}.tif").unlink()
    pairs.text["split"] = {"by": "random", "seed": 3, "groups": "region", "validation": 0.2, "test": 0.2}
    keys = pairs.source().keys()
    regions = {split: {key.name[0] for key in of_split} for split, of_split in keys.items()}
    assert {split: len(found) for split, found in regions.items()} == {"train": 3, "validation": 1, "test": 1}
    assert len(set().union(*regions.values())) == 5
    assert {s: sorted(k.name for k in v) for s, v in pairs.source().keys().items()} == {s: sorted(k.name for k in v) for s, v in keys.items()}  # fmt: skip
    pairs.text["split"] = {"by": "field", "field": "region", "train": ["x", "y"], "test": "z"}
    assert len(pairs.source().keys()["train"]) == 8
    assert pairs.source().left_out == {"that belong to no split, for example u_0": 8}


def test_blocks_of_one_scene_leave_a_margin(pairs):
    rng = np.random.default_rng(0)
    scene = rng.normal(-12, 3, (256, 256, 2)).astype(np.float32)
    write(pairs.root / "s1.tif", scene)
    write(pairs.root / "s2.tif", rng.integers(1, 250, (256, 256, 3)).astype(np.uint8))
    write(pairs.root / "lc.tif", rng.integers(0, 2, (256, 256)).astype(np.uint8))
    for kind, file in (("sar", "s1.tif"), ("eo", "s2.tif"), ("label", "lc.tif")):
        pairs.text[kind]["files"] = file
    pairs.text |= {"block": 32, "split": {"by": "blocks", "size": 640, "test": 0.25, "validation": 0.25}}
    keys = pairs.source().keys()
    assert {split: len(of_split) for split, of_split in keys.items()} == {"train": 32, "validation": 16, "test": 16}
    tile = pairs.source().read(keys["test"][3])
    rows, cols = keys["test"][3].rows, keys["test"][3].cols
    np.testing.assert_array_equal(tile.sar, scene[slice(*rows), slice(*cols)])
    pairs.text["split"]["margin"] = 100
    apart = pairs.source().keys()
    train = np.array([(k.rows[0], k.cols[0]) for k in apart["train"]])
    for split in ("validation", "test"):
        other = np.array([(k.rows[0], k.cols[0]) for k in apart[split]])
        # Tiles of 32 pixels whose starts differ by less than 42 in both axes are within 10 pixels, 100 m.
        assert (np.abs(train[:, None] - other).max(-1) >= 42).all()


def test_other_grids_are_resampled_where_the_description_says_so(pairs):
    pairs.write("eo", lambda array: np.kron(array[:8, :8], np.ones((1, 1, 1), np.uint8)), pixel=20.0)
    pairs.write("label", lambda array: np.kron(array, np.ones((2, 2), np.uint8)), pixel=5.0)
    with pytest.raises(
        DataError, match=r"eo/a.tif: \(8, 8\) pixels .*; eo.resample in the description would resample it"
    ):
        pairs.tiles()
    pairs.text["eo"]["resample"], pairs.text["label"]["resample"] = "nearest", "mode"
    tile = pairs.tiles()["train"][0]
    np.testing.assert_array_equal(tile.eo, np.kron(pairs.eo["a"][:8, :8], np.ones((2, 2, 1), np.uint8)))
    np.testing.assert_array_equal(tile.label, pairs.label["a"])
    assert tile.eo_valid.all()
    pairs.text["eo"]["nodata"] = int(pairs.eo["a"][0, 0, 0])
    pairs.eo["a"][:4, :4] = pairs.eo["a"][0, 0, 0]
    pairs.write("eo", lambda array: array[:8, :8], pixel=20.0)
    valid = pairs.tiles()["train"][0].eo_valid
    assert not valid[:8, :8].any() and valid.sum() == 256 - 64


def test_pictures_without_georeference_are_scaled(tmp_path):
    pairs = Pairs(tmp_path / "png", crs=None)
    pairs.write("eo", lambda array: array[::2, ::2])
    pairs.text["eo"]["resample"] = "nearest"
    tile = pairs.tiles()["train"][0]
    np.testing.assert_array_equal(tile.eo, np.kron(pairs.eo["a"][::2, ::2], np.ones((2, 2, 1), np.uint8)))


def polygons(path, values, layer=None, crs="EPSG:4326"):
    """Two rectangles, the left and the right half of tile a, in longitude and latitude."""
    boxes = shapely.box([500000, 500080], [5749840, 5749840], [500080, 500160], [5750000, 5750000])
    placed = shapely.transform(
        boxes, lambda xy: np.stack(rasterio.warp.transform("EPSG:32631", crs, *xy.T), -1) if crs else xy
    )
    driver = {"gpkg": "GPKG", "geojson": "GeoJSON", "shp": "ESRI Shapefile"}[path.name.split(".")[-1]]
    pyogrio.raw.write(
        path, geometry=shapely.to_wkb(placed), field_data=[np.array(values)], fields=["class"], crs=crs, driver=driver,
        geometry_type="Polygon", layer=layer or path.stem, append=path.exists(),
    )  # fmt: skip


@pytest.mark.parametrize("ending", ["gpkg", "geojson", "shp"])
@pytest.mark.parametrize("codes", [("field", "lake"), (7, 9)])
def test_polygons_are_drawn_on_the_sar_grid(pairs, ending, codes):
    polygons(pairs.root / f"lc.{ending}", codes)
    pairs.text["label"] = {
        "files": f"lc.{ending}", "column": "class", "outside": "land",
        "classes": [{"code": codes[0], "name": "land"}, {"code": [codes[1], "sea"], "name": "water"}],
    }  # fmt: skip
    tiles = pairs.tiles()["train"]
    np.testing.assert_array_equal(tiles[0].label, np.repeat([[0, 1]], 8, axis=1).repeat(16, axis=0))
    assert (tiles[1].label == 0).all()
    del pairs.text["label"]["outside"]
    assert (pairs.tiles()["train"][1].label == 255).all()
    pairs.text["label"]["classes"][1]["code"] = "sea"
    with pytest.raises(DataError, match=rf"lc.{ending}: class '{codes[1]}' is unknown; .* found: '{codes[0]}' \(1\)"):
        pairs.tiles()


def test_faults_of_vector_labels_are_named(pairs, tmp_path):
    pairs.text["label"] |= {"files": "lc.gpkg"}
    assert "label.column is missing; expected the column with the classes" in faults(tmp_path, pairs.text)
    pairs.text["label"] |= {"files": "lc.tif", "column": "class", "outside": "lnd"}
    text = faults(tmp_path, pairs.text)
    assert (
        "label.column is for vector files; expected label.files to end in .gpkg" in text
        and "label.outside is 'lnd'; did you mean 'land'" in text
    )
    pairs.text["label"] |= {"files": "lc.gpkg", "outside": "land"}
    polygons(pairs.root / "lc.gpkg", (0, 1))
    pairs.text["label"]["column"] = "klass"
    with pytest.raises(DataError, match="lc.gpkg: has no column 'klass'; did you mean 'class'"):
        pairs.tiles()
    pairs.text["label"]["column"] = "class"
    polygons(pairs.root / "lc.gpkg", (0, 1), layer="more")
    with pytest.raises(DataError, match="lc.gpkg: has the layers lc, more; choose one with label.layer"):
        pairs.tiles()
    pairs.text["label"]["layer"] = "more"
    assert set(np.unique(pairs.tiles()["train"][0].label)) == {0, 1}
