"""What a georeference says: turned images, maps that polygons can outline."""

import pytest
import rasterio
from affine import Affine

from hfd_jax.core.errors import DataError
from hfd_jax.inference.mapping.placing import check_outlines, reversed_axes

UTM = rasterio.CRS.from_epsg(32631)


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


def test_a_map_that_polygons_cannot_outline_is_refused():
    check_outlines("a.tif", {"crs": UTM, "transform": Affine.identity()})
    for georeference in ({"crs": None, "transform": Affine.identity()}, {"crs": UTM, "gcps": []}):
        with pytest.raises(DataError, match=r"a.tif: .*; --polygons needs a georeferenced scene"):
            check_outlines("a.tif", georeference)
