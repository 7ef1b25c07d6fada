"""Rasters that say more than their pixels: tags, masks, several bands, complex values, control points."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from hfd_jax.core.errors import DataError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data.builder import prepare
from hfd_jax.data.catalogue import read_dataset
from hfd_jax.data.folder import Folder
from hfd_jax.data.inspection import inspect
from hfd_jax.data.rasters import pixel_metres, read_bands, read_image
from tests.rasters import Pairs, write

RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)


@pytest.fixture
def pairs(tmp_path):
    return Pairs(tmp_path / "raw")


def refused(pairs, message):
    with pytest.raises(DataError, match=message):
        pairs.tiles()


def rgb(label):
    return np.stack([0 * label, 0 * label, 255 * label], -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "tags", "message"),
    [
        (rgb, {}, r"label/a.tif: 3 bands of uint8; expected one band of class codes: .*label.by 'colour'"),
        (lambda x: np.stack([x == 0, x], -1).astype(np.uint8), {}, r"label/a.tif: 2 bands of uint8; expected one band"),
        (lambda x: x * np.float32(0.9), {}, r"label/a.tif: the value 0.9 is no code \(0 \(.*%\), 0.9 \(.*%\)\); expected integers"),
        (lambda x: np.where(x == 1, np.inf, 0).astype(np.float32), {}, r"label/a.tif: holds infinite values"),
        (lambda x: x.astype(np.complex64), {}, r"label/a.tif: is complex"),
        (lambda x: x, {"scales": (0.5,)}, r"label/a.tif: is complex or has a scale or offset tag"),
        (lambda x: x.astype(np.int16) - 1, {}, r"label/a.tif: label code -1 is unknown; .* lists \[0, 1\]; found: -1 \(\d+.\d%\), 0"),
        (lambda x: x, {"nodata": 0}, r"its nodata tag is 0, which .* the code of class 'land'; expected 'nodata': null"),
    ],
)  # fmt: skip
def test_labels_that_are_no_codes_are_refused(pairs, change, tags, message):
    pairs.write("label", change, **tags)
    refused(pairs, message)


def test_labels_of_any_type_are_read(pairs):
    def shifted(label, value, dtype):
        label = label.astype(dtype)
        label[:2] = value
        return label

    for value, dtype, tag in ((-1, np.int16, -1), (np.nan, np.float32, np.nan), (np.nan, np.float64, None), (999, np.uint16, 999)):  # fmt: skip
        pairs.write("label", lambda label, v=value, d=dtype: shifted(label, v, d), nodata=tag)
        (tile, _) = pairs.tiles()["train"]
        assert (tile.label[:2] == IGNORE_LABEL).all()
        np.testing.assert_array_equal(tile.label[2:], pairs.label["a"][2:])
    pairs.text["label"]["ignore"] = [-1]
    pairs.write("label", lambda label: shifted(label, -1, np.int16))
    assert (pairs.tiles()["test"][0].label[:2] == IGNORE_LABEL).all()


def test_several_codes_negative_and_large_ones(pairs):
    pairs.text["label"] = {
        "classes": [{"code": [111, 112], "name": "urban"}, {"code": -5, "name": "a"}, {"code": 255, "name": "b"}],
        "ignore": [99999],
    }
    codes = np.array([111, 112, -5, 255, 99999], np.int32)
    pairs.write("label", lambda label: np.resize(codes, label.shape).astype(np.int32))
    label = pairs.tiles()["train"][0].label.ravel()
    np.testing.assert_array_equal(label[:5], [0, 0, 1, 2, IGNORE_LABEL])
    pairs.text["label"]["classes"][0]["code"] = [111, 112, 10**9]  # codes too far apart for a table
    np.testing.assert_array_equal(pairs.tiles()["train"][0].label.ravel()[:5], [0, 0, 1, 2, IGNORE_LABEL])


def test_a_nodata_tag_that_is_a_class_can_be_settled(pairs):
    pairs.write("label", nodata=0)
    pairs.text["label"]["nodata"] = None
    np.testing.assert_array_equal(pairs.tiles()["train"][0].label, pairs.label["a"])
    pairs.text["label"] |= {"nodata": 0}
    assert set(np.unique(pairs.tiles()["train"][0].label)) == {1, IGNORE_LABEL}


def test_masks_in_colours(pairs):
    pairs.text["label"] = {
        "by": "colour",
        "classes": [{"name": "land", "colour": [0, 0, 0]}, {"name": "water", "colour": [0, 0, 255]}],
    }
    pairs.write("label", rgb)
    np.testing.assert_array_equal(pairs.tiles()["train"][0].label, pairs.label["a"])
    pairs.write("label", colormap={0: (0, 0, 0, 255), 1: (0, 0, 255, 255)})
    np.testing.assert_array_equal(pairs.tiles()["train"][0].label, pairs.label["a"])
    pairs.write("label", lambda label: rgb(label) + np.array([1, 0, 0], np.uint8))
    refused(pairs, r"label code \[1, 0, (0|255)\] is unknown; .* lists \[\[0, 0, 0\], \[0, 0, 255\]\]")
    pairs.write("label")
    refused(pairs, "one band without colour table")


@pytest.mark.parametrize("unit", ["db", "raw", "linear"])
@pytest.mark.parametrize("kind", ["sar", "eo"])
def test_complex_rasters_are_refused(pairs, unit, kind):
    pairs.text["sar"]["unit"] = unit
    pairs.write(kind, lambda array: array.astype(np.complex64))
    refused(pairs, rf"{kind}/a.tif: is complex \(complex64\); expected")


def test_complex_integers_are_refused(tmp_path):
    path = tmp_path / "slc.tif"
    profile = {"driver": "GTiff", "height": 4, "width": 4, "count": 1, "dtype": "complex_int16"}
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(path, "w", **profile):
        pass
    with pytest.raises(DataError, match=r"slc.tif: is complex \(complex_int16\)"):
        read_image(str(path))


def test_scale_and_offset_tags_are_applied(pairs):
    pairs.write("sar", lambda array: np.round(array / 0.5).astype(np.int16), scales=(0.5, 0.5))
    pairs.write("eo", lambda array: array.astype(np.uint16) * 10 + 1000, scales=(1e-4,) * 3, offsets=(-0.1,) * 3)
    tile = pairs.tiles()["train"][0]
    np.testing.assert_allclose(tile.sar, pairs.sar["a"], atol=0.26)
    assert tile.eo.dtype == np.float32
    np.testing.assert_allclose(tile.eo, pairs.eo["a"] * 1e-3, rtol=1e-5)
    pairs.write("eo", lambda array: array.astype(np.uint16) * 10, names="c")
    refused(pairs, r"eo/c.tif: type uint16; expected float32, as in .*eo/a.tif \(values with a scale or offset tag are")


def test_masks_and_alpha_bands_are_respected(pairs):
    mask = np.full((16, 16), 255, np.uint8)
    mask[:3] = 0
    for kind in ("sar", "eo", "label"):
        pairs.write(kind, mask=mask)
    tile = pairs.tiles()["train"][0]
    for valid in (tile.sar_valid, tile.eo_valid, tile.label != IGNORE_LABEL):
        np.testing.assert_array_equal(valid, mask > 0)
    pairs.write("eo", lambda array: np.concatenate([array, mask[..., None]], -1), colorinterp=RGBA)
    tile = pairs.tiles()["train"][0]
    assert tile.eo.shape[-1] == 3
    np.testing.assert_array_equal(tile.eo_valid, mask > 0)


def test_a_fourth_band_that_is_called_alpha_is_data_if_four_are_described(pairs):
    pairs.text["eo"]["bands"] = ["R", "G", "B", "NIR"]
    pairs.write("eo", lambda array: np.concatenate([array, 0 * array[..., :1]], -1), colorinterp=RGBA)
    tile = pairs.tiles()["train"][0]
    assert tile.eo.shape[-1] == 4 and tile.eo_valid.all()


@pytest.mark.parametrize("unit", ["linear", "db"])
def test_zeros_are_no_backscatter(pairs, unit):
    def zeroed(array):
        array = 10 ** (array / 10) if unit == "linear" else array.copy()
        array[:5] = 0
        return array

    pairs.text["sar"]["unit"] = unit
    pairs.write("sar", zeroed)
    refused(pairs, rf"sar/a.tif: 31% of its pixels are exactly 0 .* unit is '{unit}'; expected sar.nodata")
    pairs.text["sar"]["nodata"] = 0
    tile = pairs.tiles()["train"][0]
    assert not tile.sar_valid[:5].any() and tile.sar_valid[5:].all()
    pairs.text["sar"]["nodata"] = None
    assert pairs.tiles()["train"][0].sar_valid.all()


def points(x, y, bend=0.0):
    return [GroundControlPoint(r, c, x + c * 1e-4 + bend * r * c, y - r * 1e-4) for r in (0, 8, 16) for c in (0, 8, 16)]


def test_rasters_with_control_points_are_placed_or_refused(pairs):
    for number, name in enumerate("abcd"):
        for kind in ("sar", "eo", "label"):
            place = points(5 + number + (0.03 if kind == "eo" else 0), 50)
            pairs.write(kind, names=name, crs="EPSG:4326", gcps=place)
    refused(pairs, r"eo/a.tif: 300.00 pixels off the grid of .*sar/a.tif")
    for kind in ("sar", "eo", "label"):
        pairs.write(kind, crs="EPSG:4326", gcps=points(5, 50))
    source = pairs.source()
    assert source.facts.pixel_size == pytest.approx(8.93, abs=0.02)
    assert len(inspect(source).leaks) == 4
    pairs.write("sar", crs="EPSG:4326", gcps=points(5, 50, 1e-6))
    refused(pairs, r"sar/a.tif: is placed by 9 ground control points, which no affine transform fits")


@pytest.mark.parametrize(
    ("crs", "transform", "metres"),
    [
        (32631, Affine(10, 0, 0, 0, -10, 0), 10),
        (2263, Affine(10, 0, 0, 0, -10, 0), 3.048),  # US survey feet
        (4326, Affine(1e-4, 0, 10, 0, -1e-4, 60), 11.132 * 0.5**0.5),  # at 60 degrees north, half as wide as high
        (None, Affine.identity(), 0),
    ],
)
def test_pixel_sizes_are_metres_in_any_unit(crs, transform, metres):
    grid = {"size": (100, 100), "crs": crs and rasterio.CRS.from_epsg(crs), "transform": transform}
    assert pixel_metres(grid) == pytest.approx(metres, rel=1e-3)


@pytest.mark.parametrize(
    "tags", [{"scales": (np.inf, 1)}, {"scales": (0, 1)}, {"scales": (1, 1), "offsets": (0, np.nan)}]
)
def test_scale_tags_that_leave_no_values_are_refused(pairs, tags):
    pairs.write("sar", **tags)
    refused(pairs, r"sar/a.tif: its tags are scale .*, offset .*; expected finite numbers, and no scale of 0")


def test_a_transform_without_area_is_refused(pairs):
    pairs.write("sar", pixel=1e-300)
    refused(pairs, r"sar/a.tif: its transform .* gives a pixel no area")


def test_pixel_sizes_are_metres_and_mixed_ones_are_said(pairs, tmp_path):
    pairs.text["split"] = {"by": "columns", "train": [0, 0.5], "test": [0.5, 1]}
    for kind in ("sar", "eo", "label"):
        pairs.write(kind, pixel=0.5, names="bd")
    expected = "tiles have pixels of different sizes (4 of 0.5 m, 4 of 10 m)"
    source = pairs.source()
    assert source.facts.pixel_size == 10
    assert any(expected in note for note in inspect(source).notes)
    dataset = read_dataset(prepare(Folder, source, str(tmp_path / "data")))
    assert any(expected in note for note in dataset.notes)


def test_classes_that_training_lacks_are_said(pairs, tmp_path):
    pairs.write("label", lambda label: 0 * label, names="ab")
    pairs.text["label"]["classes"].append({"code": 2, "name": "ice"})
    expected = ["no training tile has class 'water'; test tiles have it", "no training tile has class 'ice', nor has any other tile"]  # fmt: skip
    assert inspect(pairs.source()).notes == expected
    assert read_dataset(prepare(Folder, pairs.source(), str(tmp_path / "data"))).notes == expected


@pytest.mark.parametrize(("count", "works"), [(254, True), (255, True), (256, False)])
def test_as_many_classes_as_a_byte_holds(pairs, count, works):
    pairs.text["label"]["classes"] = [{"code": k, "name": f"c{k}"} for k in range(count)]
    pairs.write("label", lambda label: (np.arange(256) % count).reshape(16, 16).astype(np.uint8))
    if not works:
        refused(
            pairs, "label.classes has 256 classes; expected at most 255, since the stored value 255 means unlabelled"
        )
        return
    np.testing.assert_array_equal(np.unique(pairs.tiles()["train"][0].label), np.arange(count))


def test_public_readers_apply_masks_and_refuse_complex_values(tmp_path):
    mask = np.full((8, 8), 255, np.uint8)
    mask[0] = 0
    write(tmp_path / "a.tif", np.ones((8, 8, 2), np.float32), mask=mask)
    _, valid, _ = read_bands(str(tmp_path / "a.tif"), bands=("VV", "VH"), nodata=None)
    np.testing.assert_array_equal(valid, mask > 0)
