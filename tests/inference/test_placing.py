"""What a georeference says: turned images, sizes of pixels."""

import pytest
import rasterio
from affine import Affine

from hfd_jax.core.errors import DataError
from hfd_jax.inference.mapping.placing import check_outlines, pixel_size, reversed_axes, size_remark

UTM, DEGREES, FEET = (rasterio.CRS.from_epsg(code) for code in (32631, 4326, 2263))


@pytest.mark.parametrize(
    ("transform", "axes"),
    [
        (Affine(1, 0, 0, 0, -1, 0), {"x": (), "y": (), "any": ()}),
        (Affine(1, 0, 0, 0, 1, 0), {"x": (), "y": (0,), "any": ()}),
        (Affine(-1, 0, 0, 0, -1, 0), {"x": (1,), "y": (), "any": ()}),
        (Affine(-1, 0, 0, 0, 1, 0), {"x": (1,), "y": (0,), "any": ()}),
    ],
)
def test_an_image_is_turned_only_if_it_reverses_the_look_direction(transform, axes):
    for look_axis, expected in axes.items():
        assert reversed_axes({"crs": UTM, "transform": transform}, look_axis) == expected
        assert reversed_axes({"crs": None, "transform": transform}, look_axis) == (), "an image without georeference"
        assert reversed_axes({"crs": UTM, "gcps": []}, look_axis) == ()


def test_pixel_sizes_are_metres():
    shape = (100, 100)
    assert pixel_size({"crs": UTM, "transform": Affine(10, 0, 0, 0, -10, 0)}, shape) == 10
    assert pixel_size({"crs": FEET, "transform": Affine(10, 0, 0, 0, -10, 0)}, shape) == pytest.approx(3.048, 1e-3)
    at_60_north = {"crs": DEGREES, "transform": Affine(1e-4, 0, 10, 0, -1e-4, 60)}
    assert pixel_size(at_60_north, shape) == pytest.approx(11.1195 * 0.5**0.5, 1e-3)
    assert pixel_size({"crs": None, "transform": Affine.identity()}, shape) is None


@pytest.mark.parametrize(
    ("found", "trained", "remarked"),
    [
        (10, 10, False),
        (12, 10, False),
        (100, 10, True),
        (1, 10, True),
        (None, 10, False),
        (10, 0, False),
        (10, 1e-4, False),
    ],
)
def test_only_other_sizes_are_remarked(found, trained, remarked):
    assert bool(size_remark(found, trained)) == remarked


def test_a_map_that_polygons_cannot_outline_is_refused():
    check_outlines("a.tif", {"crs": UTM, "transform": Affine.identity()})
    for georeference in ({"crs": None, "transform": Affine.identity()}, {"crs": UTM, "gcps": []}):
        with pytest.raises(DataError, match=r"a.tif: .*; --polygons needs a georeferenced scene"):
            check_outlines("a.tif", georeference)
