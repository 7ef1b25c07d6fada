"""Longitudes on the circle, and tiles beside the antimeridian."""

import numpy as np
import pytest
from rasterio.warp import transform

from hfd_jax.data import ground
from hfd_jax.data.longitudes import is_within, overlap, unwrapped


@pytest.mark.parametrize(
    ("longitude", "start", "stop", "expected"),
    [
        (4.3, 4.2, 4.4, True), (4.4, 4.2, 4.4, False), (4.2, 4.2, 4.4, True), (0, -1, 1, True), (180, -1, 1, False),
        (180, 179.9, 180.1, True), (-180, 179.9, 180.1, True), (-179.95, 179.9, 180.1, True), (-179.9, 179.9, 180.1, False),
        (179.95, -180.1, -179.9, True), (359.5, -1, 1, True), (100, -180, 180, True), (180, -180, 180, True),
    ],
)  # fmt: skip
def test_a_meridian_has_many_longitudes(longitude, start, stop, expected):
    assert is_within(longitude, start, stop) is expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 1), (1, 2), False),
        ((0, 1), (0.5, 2), True),
        ((179.9, 180.1), (-180, -179.9), True),
        ((179, 180), (-180, -179), False),
    ],
)
def test_ranges_overlap_across_the_antimeridian(one, other, expected):
    assert overlap(one, other) is overlap(other, one) is expected


def corners(longitude, latitude, crs, size=640.0):
    (x,), (y,) = transform("EPSG:4326", crs, [longitude], [latitude])
    return [(x + i * size / 2, y + j * size / 2) for i, j in ((-1, 1), (1, 1), (1, -1), (-1, -1))]


def test_shared_ground_is_found_across_the_antimeridian_and_nowhere_else():
    west, east, home = "EPSG:32660", "EPSG:32601", "EPSG:32631"
    parts = {
        "train": (np.array([corners(180, 10, west), corners(179, 10, west)]), [west, west]),
        "test": (
            np.array([corners(-179.999, 10, east), corners(-178, 10, east), corners(0, 10, home)]),
            [east, east, home],
        ),
    }
    assert ground.shared_ground(parts) == {"train/test": [(0, 0)]}


def test_polygons_are_not_torn_apart():
    np.testing.assert_allclose(
        unwrapped(np.array([[179.0, -179.0, 179.5], [-178.0, -177.0, -178.0], [5.0, 6.0, 5.0]])),
        [[179, 181, 179.5], [182, 183, 182], [5, 6, 5]],
    )
    np.testing.assert_allclose(unwrapped(np.array([[-0.5, 0.5], [3.0, 4.0]])), [[-0.5, 0.5], [3, 4]])
