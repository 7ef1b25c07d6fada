"""Polygons from class maps: exact if possible, independent of the strips, valid, georeferenced, with areas on the ground."""

import json
import math

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import rasterio.warp
import shapely
from rasterio.transform import Affine, from_origin

from hfd_jax.core.errors import ConfigError, DataError, WorkdirError
from hfd_jax.inference.mapping import components, polygons
from hfd_jax.inference.mapping.polygons import write_polygons
from tools import polygonize

UTM, ORIGIN = "EPSG:32631", (592000.0, 5750000.0)


@pytest.fixture
def make(tmp_path):
    def make(name, array, crs=UTM, transform=None, names=("land", "building"), dtype="uint8"):
        """Writes [H, W] as a class map with pixels of 10 m; returns its path."""
        path = str(tmp_path / name)
        with rasterio.open(
            path, "w", driver="GTiff", height=array.shape[0], width=array.shape[1], count=1, dtype=dtype, crs=crs,
            transform=transform or from_origin(*ORIGIN, 10, 10), nodata=255,
        ) as raster:  # fmt: skip
            raster.write(array.astype(dtype), 1)
            raster.update_tags(**{f"CLASS_{k}": name for k, name in enumerate(names)})
        return path

    return make


@pytest.fixture
def run(tmp_path):
    def run(class_map, confidence=None, name="out.gpkg", class_name="building", **options):
        """(number of features, what pyogrio reads: meta, shapes, fields by name)."""
        path = str(tmp_path / name)
        count = write_polygons(class_map, confidence, path, class_name, **options)
        meta, _, shapes, values = pyogrio.raw.read(path)
        assert count == len(shapes)
        return meta, shapely.from_wkb(shapes), dict(zip(meta["fields"], values, strict=True))

    return run


def blocks(*boxes, shape=(40, 60)):
    """A map of land with buildings at (first row, end row, first column, end column)."""
    array = np.zeros(shape, np.uint8)
    for top, bottom, left, right in boxes:
        array[top:bottom, left:right] = 1
    return array


def test_two_rectangles_with_area_confidence_and_crs(make, run):
    array = blocks((20, 24, 3, 9), (5, 15, 10, 50))
    array[0] = 255
    confidence = np.full(array.shape, 127, np.uint8)
    confidence[20:24, 3:9] = 254
    confidence[20, 3:6] = 255  # these have none, and do not count
    confidence[21, 3] = 0
    meta, shapes, fields = run(make("map.tif", array), make("confidence.tif", confidence))
    assert meta["crs"] == UTM and meta["geometry_type"] == "Polygon"
    assert list(fields) == ["id", "class", "area_m2", "confidence"]
    assert fields["id"].tolist() == [1, 2] and set(fields["class"]) == {"building"}, "by the first pixel, from the top"
    assert fields["area_m2"].tolist() == [40000.0, 2400.0]
    np.testing.assert_allclose(fields["confidence"], [127 / 254, 20 / 21], rtol=1e-12)
    x, y = ORIGIN
    assert shapes[0].equals(shapely.box(x + 100, y - 150, x + 500, y - 50))
    assert shapes[1].equals(shapely.box(x + 30, y - 240, x + 90, y - 200))


def test_the_confidence_field_is_absent_without_a_raster_and_null_without_values(make, run):
    array = blocks((0, 4, 0, 4), (10, 12, 0, 4))
    assert "confidence" not in run(make("map.tif", array))[2]
    confidence = np.where(np.arange(40)[:, None] < 5, 254, 255) + 0 * array
    values = run(make("map.tif", array), make("confidence.tif", confidence))[2]["confidence"]
    assert values[0] == 1 and np.isnan(values[1])


def test_holes_are_kept(make, run):
    array = blocks((2, 30, 2, 50))
    array[10:20, 10:20] = 0
    array[15, 15] = 1  # an island in the hole
    _, shapes, fields = run(make("map.tif", array))
    assert [len(shape.interiors) for shape in shapes] == [1, 0]
    assert fields["area_m2"].tolist() == [(28 * 48 - 100) * 100, 100]
    assert not shapes[0].intersects(shapes[1])


@pytest.mark.parametrize(("connectivity", "count", "kind"), [(4, 3, "Polygon"), (8, 1, "MultiPolygon")])
def test_pixels_that_touch_at_a_corner(make, run, connectivity, count, kind):
    array = blocks((2, 3, 2, 3), (3, 5, 3, 5), (5, 6, 5, 6))
    for strip_pixels in (180, 10**6):  # a border between strips runs through the first corner, or none
        meta, shapes, fields = run(
            make("map.tif", array), connectivity=connectivity, simplify=0.0, strip_pixels=strip_pixels
        )
        assert len(shapes) == count and meta["geometry_type"] == kind
        assert shapely.is_valid(shapes).all() and fields["area_m2"].sum() == 600
        assert shapely.area(shapes).sum() == 600


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("simplify", [0.0, 1.0])
def test_the_result_does_not_depend_on_the_strips(make, run, rng, connectivity, simplify):
    """Noise near the density where components grow without bound: they fork, join again and enclose others."""
    array = (rng.random((60, 50)) < (0.58 if connectivity == 4 else 0.42)).astype(np.uint8)
    array[:, 20] = 1
    paths = make("map.tif", array), make("confidence.tif", rng.integers(0, 256, array.shape))
    results = []
    for rows in (1, 7, 33, 60):
        _, shapes, fields = run(
            *paths, connectivity=connectivity, simplify=simplify, strip_pixels=rows * array.shape[1]
        )
        assert shapely.is_valid(shapes).all() and not shapely.is_empty(shapes).any()
        assert fields["area_m2"].sum() == array.sum() * 100
        results.append((shapely.to_wkb(shapes).tolist(), *(values.tolist() for values in fields.values())))
    assert len(results[0][0]) > 10
    assert str(results[1:]) == str(results[:1] * 3)
    structure = np.ones((3, 3)) if connectivity == 8 else None
    assert len(results[0][0]) == components.ndimage.label(array, structure)[1]


def test_the_outline_of_the_pixels_is_exact_without_simplification(make, run, rng):
    array = (rng.random((40, 40)) < 0.6).astype(np.uint8)
    path = make("map.tif", array)
    with rasterio.open(path) as raster:
        drawn = rasterio.features.rasterize(
            run(path, simplify=0.0, strip_pixels=280)[1], array.shape, transform=raster.transform
        )
    np.testing.assert_array_equal(drawn, array)


@pytest.mark.parametrize("most_rings", [components.MOST_RINGS, 0])
def test_simplification_removes_the_staircase(make, run, monkeypatch, most_rings):
    """A rotated house of 40 x 20 pixels with a hole, and thin components, which must be kept.

    Above MOST_RINGS (0: always), a simpler method cuts the corners.
    """
    monkeypatch.setattr(components, "MOST_RINGS", most_rings)
    house = shapely.affinity.rotate(shapely.box(10, 15, 50, 35), 25)
    array = rasterio.features.rasterize([house], (60, 60)).astype(np.uint8)
    array[25, 30] = 0  # a hole
    array[2, 5:25] = 1  # a line one pixel wide
    array[5, 5] = 1
    raw, (line, dot, large) = (run(make("map.tif", array), simplify=s)[1] for s in (0.0, 1.0))
    assert large.is_valid and len(large.interiors) == 1
    # Its outline of 120 pixels may move by half a pixel; the house has 797.
    assert large.area == pytest.approx(raw[2].area, rel=0.075)
    edges = np.diff(shapely.get_coordinates(large.exterior), axis=0)
    upright = np.count_nonzero(edges, axis=1) == 1
    assert not (upright & np.roll(upright, 1)).any(), "a step of a stair: two upright edges in a row"
    if most_rings:
        assert len(edges) < 12
        assert line.area == raw[0].area and dot.area == raw[1].area, "too thin to be made of fewer corners"


def test_a_rotated_grid(make, run):
    transform = Affine.translation(*ORIGIN) @ Affine.rotation(30) @ Affine.scale(10, -10)
    _, shapes, fields = run(make("map.tif", blocks((5, 15, 10, 50)), transform=transform))
    expected = shapely.Polygon([transform @ corner for corner in ((10, 5), (50, 5), (50, 15), (10, 15))])
    assert shapes[0].symmetric_difference(expected).area < 1e-3, "square metres: rounding of coordinates"
    assert fields["area_m2"][0] == pytest.approx(40000, rel=1e-9) and shapes[0].area == pytest.approx(40000)


def metres_per_degree(latitude):
    """Lengths of a degree of latitude and longitude (WGS 84) as cosine series, accurate to about a metre."""
    a = math.radians(latitude)
    north = 111132.954 - 559.822 * math.cos(2 * a) + 1.175 * math.cos(4 * a)
    return north, 111412.84 * math.cos(a) - 93.5 * math.cos(3 * a) + 0.118 * math.cos(5 * a)


@pytest.mark.parametrize("latitude", [0.5, 52.0, -75.0])
def test_area_in_longitude_and_latitude(make, run, latitude):
    transform = from_origin(4.3, latitude, 2e-4, 1e-4)
    _, shapes, fields = run(make("map.tif", blocks((0, 40, 0, 60)), "EPSG:4326", transform))
    north, east = metres_per_degree(latitude - 0.002)
    assert fields["area_m2"][0] == pytest.approx(40e-4 * north * 120e-4 * east, rel=1e-3)
    np.testing.assert_allclose(shapes[0].bounds, (4.3, latitude - 0.004, 4.312, latitude), atol=1e-9)


def test_area_in_a_projection_that_distorts_lengths(make, run):
    array = blocks((5, 15, 10, 50))
    mercator = run(make("map.tif", array, "EPSG:3857", from_origin(480000, 6800000, 10, 10)))[2]["area_m2"][0]
    (_, latitude) = rasterio.warp.transform("EPSG:3857", "EPSG:4326", [480000], [6800000])
    # On the sphere it would be exact; the ellipsoid's flattening is 0.3 %.
    assert mercator == pytest.approx(40000 * math.cos(math.radians(latitude[0])) ** 2, rel=0.01)
    feet = run(make("map.tif", array, "EPSG:2263", from_origin(980000, 200000, 10, 10)))[2]["area_m2"][0]
    assert feet == pytest.approx(40000 * 0.3048006096**2, rel=1e-6), "New York's grid is in US survey feet"


def test_geojson_is_in_longitude_and_latitude(make, run, tmp_path):
    meta, shapes, fields = run(make("map.tif", blocks((5, 15, 10, 50))), name="out.geojson")
    text = json.loads((tmp_path / "out.geojson").read_text())
    assert "crs" not in text and meta["crs"] == "EPSG:4326", "RFC 7946 knows no other"
    x, y = ORIGIN
    corners = rasterio.warp.transform(
        UTM, "EPSG:4326", [x + 100, x + 500, x + 500, x + 100], [y - 50] * 2 + [y - 150] * 2
    )
    expected = shapely.Polygon(np.transpose(corners))
    assert shapely.hausdorff_distance(shapes[0], expected) < 2e-7, "degrees: seven decimals are written"
    assert shapely.is_ccw(shapes[0].exterior), "as RFC 7946 demands"
    assert fields["area_m2"][0] == 40000


def test_small_polygons_are_left_out(make, run):
    array = blocks((0, 2, 0, 5), (5, 8, 0, 3), (10, 20, 0, 10))
    assert run(make("map.tif", array), min_area=1000)[2]["area_m2"].tolist() == [1000, 10000]
    assert run(make("map.tif", array), min_area=1001)[2]["id"].tolist() == [1]


@pytest.mark.parametrize("name", ["out.gpkg", "out.geojson"])
def test_a_class_without_pixels_gives_an_empty_file(make, run, tmp_path, name):
    array = blocks()
    run(make("map.tif", array), make("confidence.tif", array), name=name)
    info = pyogrio.read_info(str(tmp_path / name))
    assert info["features"] == 0 and info["crs"] == (UTM if name.endswith("gpkg") else "EPSG:4326")
    if name.endswith("gpkg"):  # GeoJSON has no schema but its features
        assert list(info["fields"]) == ["id", "class", "area_m2", "confidence"] and info["geometry_type"] == "Polygon"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"class_name": "bulding"}, ConfigError, "map.tif: has no class 'bulding'; did you mean 'building'? (expected one of: land, building)"),
        ({"class_map": "untagged.tif"}, DataError, "untagged.tif: has no tags CLASS_0"),
        ({"class_map": "nowhere.tif"}, DataError, "nowhere.tif: no such file"),
        ({"class_map": "wide.tif"}, DataError, "wide.tif: 1 bands of uint16; expected one band of uint8"),
        ({"class_map": "plain.tif"}, DataError, "plain.tif: has no CRS"),
        ({"confidence": "small.tif"}, DataError, "small.tif: (30, 60) pixels (rows, columns); "),
        ({"confidence": "moved.tif"}, DataError, "moved.tif: 3.00 pixels off the grid of "),
        ({"path": "out.shp"}, ConfigError, "ends in '.shp'; expected .gpkg or .geojson"),
        ({"path": "no/where.gpkg"}, WorkdirError, "there is no folder"),
        ({"path": "folder.gpkg"}, WorkdirError, "folder.gpkg: cannot be written"),
        ({"min_area": -1.0}, ConfigError, "min_area is -1.0; expected 0 or more"),
        ({"simplify": math.nan}, ConfigError, "simplify is nan; expected 0 or more"),
        ({"connectivity": 6}, ConfigError, "connectivity is 6; expected one of (4, 8)"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # of the raster without CRS
def test_every_mistake_is_named(make, tmp_path, options, error, message):
    array = blocks((5, 15, 10, 50))
    make("map.tif", array)
    make("untagged.tif", array, names=())
    make("wide.tif", array, dtype="uint16")
    make("plain.tif", array, crs=None, transform=Affine.identity())
    make("small.tif", array[:30])
    make("moved.tif", array, transform=from_origin(ORIGIN[0] + 30, ORIGIN[1], 10, 10))
    (tmp_path / "folder.gpkg").mkdir()
    before = sorted(tmp_path.iterdir())
    given = {"class_map": "map.tif", "path": "out.gpkg", **options}
    given |= {key: str(tmp_path / given[key]) for key in ("class_map", "confidence", "path") if key in given}
    given = {"class_name": "building", "confidence": None, **given}
    with pytest.raises(error) as caught:
        write_polygons(**given)
    assert message in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("fault", [pyogrio.errors.DataLayerError("disk full"), KeyboardInterrupt()])
def test_an_existing_file_is_kept_when_writing_fails(make, tmp_path, monkeypatch, fault):
    path = str(tmp_path / "out.gpkg")
    assert write_polygons(make("map.tif", blocks((5, 15, 10, 50))), None, path, "building") == 1
    written = pyogrio.raw.write

    def fails(temporary, **options):
        written(temporary, **options)
        raise fault

    monkeypatch.setattr(polygons.pyogrio.raw, "write", fails)
    with pytest.raises(WorkdirError if isinstance(fault, RuntimeError) else KeyboardInterrupt):
        write_polygons(make("map.tif", blocks()), None, path, "building")
    assert pyogrio.read_info(path)["features"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.tif", "out.gpkg"]


def test_the_tool(make, tmp_path, capsys):
    array = blocks((5, 15, 10, 50), (30, 31, 30, 31), (31, 32, 31, 32))
    output = str(tmp_path / "out.geojson")
    words = [f"--input={make('map.tif', array)}", f"--confidence={make('c.tif', 254 * array)}", "--class_name=building"]
    words += [f"--output={output}", "--min_area=200", "--connectivity=8"]
    polygonize.main(polygonize.make_parser().parse_args(words))
    assert capsys.readouterr().out == f"written: {output} (2 polygons of class building)\n"
    assert pyogrio.raw.read(output)[3][3].tolist() == [1.0, 1.0]
    one = f"--input={make('one.tif', blocks((5, 15, 10, 50)))}"
    polygonize.main(polygonize.make_parser().parse_args([one, "--class_name=building", f"--output={output}"]))
    assert capsys.readouterr().out == f"written: {output} (1 polygon of class building)\n"
