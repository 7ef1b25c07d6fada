"""The simulator: deterministic, and its radar obeys the geometry of side-looking imaging."""

import functools
import math

import numpy as np
import pytest

from hfd_jax.data import catalogue, simulator
from hfd_jax.data.simulated.ground import Ground
from hfd_jax.data.simulated.radar import SIGMA0_DB, trace_rows
from hfd_jax.data.simulator import SceneOptions, simulate


def test_equal_arguments_give_equal_bytes_and_index_and_seed_change_them():
    one, again = simulate(3, SceneOptions()), simulate(3, SceneOptions())
    for name in ("sar", "eo", "label", "height"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
    assert not np.array_equal(one.sar, simulate(4, SceneOptions()).sar)
    assert not np.array_equal(one.sar, simulate(3, SceneOptions(seed=1)).sar)


def test_shapes_dtypes_and_ranges():
    scene = simulate(0, SceneOptions(size=96))
    assert scene.sar.shape == (96, 96, 2) and scene.sar.dtype == np.float32 and np.isfinite(scene.sar).all()
    assert scene.eo.shape == (96, 96, 4) and scene.eo.dtype == np.uint8 and scene.eo.min() > 0
    assert scene.label.shape == (96, 96) and scene.label.max() < len(simulator.CLASS_NAMES)
    assert scene.height.min() >= 0 and (scene.height[scene.label == simulator.BUILDINGS] > 0).all()


def one_building(tall: float, incidence: float):
    """VV and VH power of a flat meadow with one square building at columns 60 to 79, without speckle."""
    n = 160
    classes, height = np.zeros((n, n), np.uint8), np.zeros((n, n), np.float32)
    classes[60:80, 60:80], height[60:80, 60:80] = simulator.BUILDINGS, tall
    flat = np.zeros((n, n), np.float32)
    ground = Ground(1.0, classes, height, classes * 0, flat, flat, flat, flat, classes * 0)
    surface = 10 ** (SIGMA0_DB[classes] / 10)
    return trace_rows(ground, 1 / math.tan(math.radians(incidence)), surface)


@pytest.mark.parametrize(("tall", "incidence"), [(10.0, 45.0), (8.0, 30.0), (12.0, 55.0)])
def test_layover_leans_towards_the_radar_and_shadow_falls_behind(tall, incidence):
    power = one_building(tall, incidence)[70, :, 0]
    ground = one_building(0.0, incidence)[20, 20, 0]
    layover, shadow = tall / math.tan(math.radians(incidence)), tall * math.tan(math.radians(incidence))
    # Nearer to the radar than the wall, over h / tan(incidence): the wall and the roof lie on top of the ground.
    inside = power[math.ceil(60 - layover) + 1 : 59]
    assert (inside > 1.5 * ground).all()
    np.testing.assert_allclose(power[1 : math.floor(60 - layover) - 1], ground, rtol=1e-3)
    # Behind the far wall (column 80), over h * tan(incidence): nothing at all, then the ground again.
    dark = power[81 : math.floor(80 + shadow) - 1]
    assert len(dark) > 1 and (dark < 1e-3 * ground).all()
    np.testing.assert_allclose(power[math.ceil(80 + shadow) + 2 : 150], ground, rtol=1e-3)


def test_wall_that_faces_the_radar_has_a_bright_line_at_its_foot():
    power = one_building(10.0, 45.0)
    row = power[70, :, 0]
    assert abs(int(row.argmax()) - 60) <= 1
    assert row.max() > 10 * row[20], "10 dB over the meadow"
    assert power[70, :, 0].max() / power[70, 20, 0] > power[70, :, 1].max() / power[70, 20, 1], (
        "stronger in VV than in VH"
    )


def test_power_is_conserved_over_flat_ground():
    """Flat ground returns its sigma0 at any incidence angle: deposits preserve the total power."""
    flat = one_building(0.0, 40.0)
    meadow = 10 ** (SIGMA0_DB[simulator.GRASS] / 10)
    np.testing.assert_allclose(flat[20, 10:150], np.broadcast_to(meadow, (140, 2)), rtol=1e-3)


def test_water_and_roads_are_the_dark_classes():
    options = SceneOptions(looks=16)
    tiles = [simulate(i, options) for i in range(12)]
    vv = np.concatenate([t.sar[..., 0].ravel() for t in tiles])
    label = np.concatenate([t.label.ravel() for t in tiles])
    # (Crowns and roofs lean away from their footprints: there, layover and shadow decide.)
    water, road, grass = (np.median(vv[label == k]) for k in (simulator.WATER, simulator.ROAD, simulator.GRASS))
    assert water < road < grass - 3


@pytest.mark.parametrize("looks", [1.0, 4.0])
def test_speckle_has_the_stated_number_of_looks(looks):
    """Equivalent number of looks = mean^2 / variance of the ratio to the many-look image of the same scene."""
    quiet = simulate(5, SceneOptions(size=128, looks=1e6)).sar
    noisy = simulate(5, SceneOptions(size=128, looks=looks)).sar
    ratio = 10 ** ((noisy - quiet) / 10)
    # 32768 samples: the standard error of the variance is about 3 % for one look.
    assert ratio.mean() == pytest.approx(1, abs=0.03)
    assert ratio.mean() ** 2 / ratio.var() == pytest.approx(looks, rel=0.1)


def test_misregistration_moves_the_optical_image_alone():
    straight, shifted = simulate(2, SceneOptions(size=96)), simulate(2, SceneOptions(size=96, misregistration=5))
    np.testing.assert_array_equal(straight.sar, shifted.sar)
    np.testing.assert_array_equal(straight.label, shifted.label)
    # Phase correlation finds the shift.
    one, other = (np.fft.fft2(s.eo[..., 0] - s.eo[..., 0].mean()) for s in (straight, shifted))
    peak = np.unravel_index(np.fft.ifft2(other * np.conj(one)).real.argmax(), (96, 96))
    moved = [p if p < 48 else p - 96 for p in peak]
    assert math.hypot(*moved) == pytest.approx(5, abs=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 8),
        ("looks", 0.0),
        ("incidence", 5.0),
        ("pixel_size", 0.0),
        ("misregistration", -1.0),
        ("unlabelled_share", 1.0),
    ],
)
def test_invalid_options_are_named(field, value):
    with pytest.raises(ValueError, match=f"scenes.{field} is {value}; expected"):
        SceneOptions(**{field: value})


REAL = {"regions": 2, "nuisance": 1.0, "clouds": 0.2, "label_shift": 1.0, "label_change": 0.3}


@functools.cache
def tiles_of(**options):
    """A source of 6 training, 2 validation and 2 test tiles, and these tiles."""
    source = catalogue.SceneSource(SceneOptions(size=32, pixel_size=2.0, **options), train=6, validation=2, test=2)
    return source, [source.read(key) for key in range(10)]


def test_options_of_real_data_leave_the_standard_world_as_it_was():
    source, _ = tiles_of()
    assert source.name == "32px_2m_1looks_38deg_0shift_0unlabelled_seed0_6-2-2"
    assert not set(simulator.LATER) & set(source.settings["options"]), "data sets prepared by version 0.1 still open"
    other = catalogue.SceneSource(SceneOptions(size=32, pixel_size=2.0, **REAL), train=6, validation=2, test=2)
    assert other.name == source.name + "_2regions_1nuisance_0.2clouds_1label_shift_0.3label_change"
    assert set(simulator.LATER) <= set(other.settings["options"])


def test_clouds_are_masked_and_bright():
    _, tiles = tiles_of(clouds=0.2)
    masked = np.stack([~tile.eo_valid for tile in tiles])
    assert 0.05 < masked.mean() < 0.4 and all(tile.sar_valid.all() for tile in tiles)
    eo, clear = np.stack([tile.eo for tile in tiles]), ~masked
    assert eo[masked].mean() > eo[clear].mean() + 60
    _, same = tiles_of()
    assert all(np.array_equal(one.label, other.label) for one, other in zip(tiles, same, strict=True))


def test_labels_of_training_are_inexact_and_those_of_the_test_split_are_true():
    (_, true), (_, moved) = tiles_of(), tiles_of(label_shift=1.0)
    wrong = [np.mean(one.label != other.label) for one, other in zip(true, moved, strict=True)]
    assert max(wrong[8:]) == 0 and 0.02 < np.mean(wrong[:8]) < 0.2
    _, outdated = tiles_of(label_change=0.5)
    changed = np.stack([one.label != other.label for one, other in zip(true, outdated, strict=True)])
    assert not changed[8:].any() and (np.stack([tile.label for tile in outdated])[changed] == simulator.GRASS).all()
    assert 0.25 < changed[:8].sum() / np.isin([tile.label for tile in true[:8]], (3, 4)).sum() < 0.75


def test_nuisances_of_one_sensor_leave_labels_alone_and_vary_within_a_class():
    (_, plain), (_, varied) = tiles_of(), tiles_of(nuisance=1.0)
    meadow = np.stack([tile.label for tile in plain]) == simulator.GRASS
    assert all(np.array_equal(one.label, other.label) for one, other in zip(plain, varied, strict=True))
    spread = [np.stack([tile.eo for tile in tiles])[meadow].std(0).mean() for tiles in (plain, varied)]
    assert spread[1] > 1.2 * spread[0]


def test_splits_lie_in_different_regions():
    source, tiles = tiles_of(regions=2)
    regions = [source._region(split, key) for split, keys in source.keys().items() for key in keys]
    assert len({region.incidence for region in regions}) == 6
    assert not np.array_equal(tiles[0].label, tiles_of()[1][0].label)
    again = tiles_of(regions=2)[1]
    assert all(np.array_equal(one.sar, other.sar) for one, other in zip(tiles, again, strict=True))
