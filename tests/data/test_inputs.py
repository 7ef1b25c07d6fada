"""Network input from a stored batch: units, filter, standardisation, augmentation."""

import numpy as np
import pytest

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data import augment, normalise, units
from hfd_jax.data.facts import BandStatistics
from hfd_jax.data.inputs import InputSpec, network_input, seen_label, training_input

STATISTICS = BandStatistics(mean=(-10.0, -20.0), std=(2.0, 4.0), low=(-14.0, -28.0), high=(-6.0, -12.0))
EO_STATISTICS = BandStatistics(mean=(100.0,), std=(50.0,), low=(10.0,), high=(240.0,))


def spec(augmentation=None, look_axis="x", **kwargs):
    return InputSpec(
        STATISTICS,
        EO_STATISTICS,
        normalise.Normalisation(**kwargs),
        augmentation or augment.Augmentation(flips=False),
        look_axis,
    )


@pytest.fixture
def batch(rng):
    shape = (6, 8, 8)
    return {
        "sar": rng.normal(-12, 3, (*shape, 2)).astype(np.float32),
        "eo": rng.integers(0, 255, (*shape, 1)).astype(np.uint8),
        "label": rng.integers(0, 3, shape).astype(np.uint8),
        "sar_valid": rng.random(shape) < 0.9,
        "eo_valid": rng.random(shape) < 0.9,
        "index": np.arange(6, dtype=np.int32),
        "key": rng.integers(2**31, size=6, dtype=np.int32),
    }


def test_input_is_standardised_and_nodata_is_zero(batch):
    batch["sar"][~batch["sar_valid"]] = np.nan
    out = network_input(batch, spec())
    expected = (batch["sar"] - STATISTICS.mean) / STATISTICS.std
    np.testing.assert_allclose(out["sar"][batch["sar_valid"]], expected[batch["sar_valid"]], rtol=1e-5)
    assert not np.asarray(out["sar"])[~batch["sar_valid"]].any()
    np.testing.assert_allclose(out["eo"][batch["eo_valid"]], (batch["eo"][batch["eo_valid"]] - 100.0) / 50, rtol=1e-5)


def test_clip_cuts_to_the_percentiles(batch):
    out = np.asarray(network_input(batch, spec(clip=True))["sar"])
    assert out.min() >= -2 and out.max() <= 2


def test_lee_filter_equals_a_plain_loop_and_keeps_edges(rng):
    power = rng.gamma(1.0, 1.0, (1, 12, 10, 1)).astype(np.float32)
    power[:, :, 5:] *= 100
    valid = rng.random((1, 12, 10)) < 0.95
    found = np.asarray(normalise.lee_filter(power, valid))
    for i, j in [(0, 0), (5, 2), (6, 5), (11, 9), (3, 8)]:
        window = (slice(max(i - 3, 0), i + 4), slice(max(j - 3, 0), j + 4))
        values = power[0, :, :, 0][window][valid[0][window]]
        mean, variance = values.mean(), values.var()
        k = np.clip((variance - mean**2) / variance, 0, 1)
        assert found[0, i, j, 0] == pytest.approx(mean + k * (power[0, i, j, 0] - mean), rel=2e-3)
    out = network_input(
        {
            "sar": units.linear_to_db(np.concatenate([power, power], -1)),
            "eo": np.zeros((1, 12, 10, 1), np.uint8),
            "sar_valid": valid,
            "eo_valid": valid,
            "label": valid,
        },
        spec(sar_filter="lee"),
    )
    expected = (10 * np.log10(found[..., 0]) + 10) / 2
    np.testing.assert_allclose(out["sar"][..., 0][valid], expected[valid], atol=1e-3)


@pytest.mark.parametrize(("look_axis", "legal"), [("x", (0,)), ("y", (1,)), ("any", (0, 1))])
def test_flips_preserve_the_look_direction_and_turn_all_arrays_together(look_axis, legal, rng):
    n = 64
    image = np.arange(16.0).reshape(1, 4, 4, 1).repeat(n, 0).astype(np.float32)
    batch = {"sar": image, "eo": image + 1, "label": image[..., 0].astype(np.uint8)}
    out = augment.flip(augment.sample_keys(np.arange(n)), batch, look_axis)
    base = image[0, :, :, 0]
    allowed = [base, *(np.flip(base, a) for a in legal)]
    if look_axis == "any":
        allowed = [np.rot90(f, k) for k in range(4) for f in (base, np.flip(base, 0))]
    seen = set()
    for sar, eo, label in zip(out["sar"], out["eo"], out["label"], strict=True):
        match = [k for k, a in enumerate(allowed) if np.array_equal(a, sar[..., 0])]
        assert match, "an illegal flip"
        seen.add(match[0])
        np.testing.assert_array_equal(eo, sar + 1)
        np.testing.assert_array_equal(label, sar[..., 0])
    assert len(seen) == (8 if look_axis == "any" else 2)


def test_gain_and_speckle_have_the_stated_size():
    keys = augment.sample_keys(np.arange(400))
    db = np.zeros((400, 4, 4, 1), np.float32)
    offsets = np.asarray(augment.sar_gain(keys, db, 1.5))
    assert np.ptp(offsets.reshape(400, -1), axis=1).max() == 0, "one offset per sample"
    assert offsets.min() == pytest.approx(-1.5, abs=0.05) and offsets.max() == pytest.approx(1.5, abs=0.05)
    power = 10 ** (np.asarray(augment.speckle(keys, db, 4.0)) / 10)
    # 6400 samples of Gamma(4) / 4: mean 1 +- 0.006, variance 1/4.
    assert power.mean() == pytest.approx(1, abs=0.03) and power.var() == pytest.approx(0.25, rel=0.15)
    factor = np.asarray(augment.eo_gain(keys, np.ones((400, 2, 2, 1), np.float32), 0.2))
    assert factor.min() == pytest.approx(0.8, abs=0.01) and factor.max() == pytest.approx(1.2, abs=0.01)


def test_augmentation_depends_on_the_sample_and_not_on_its_position(batch):
    """Two half batches in another order are augmented like the whole batch."""
    options = spec(augment.Augmentation(flips=True, sar_gain_db=1.0, eo_gain=0.1, speckle_looks=4.0))
    whole = training_input(batch, options)
    order = np.array([4, 0, 5, 2, 1, 3])
    parts = [training_input({k: v[rows] for k, v in batch.items()}, options) for rows in (order[:3], order[3:])]
    for name in ("sar", "eo", "label"):
        together = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(np.asarray(whole[name])[order], together, rtol=1e-6)
    other = training_input(batch | {"key": batch["key"] + 10}, options)
    assert not np.allclose(whole["sar"], other["sar"])


def test_lee_filter_does_not_spread_nodata(batch):
    batch["sar"][~batch["sar_valid"]] = np.nan
    out = np.asarray(network_input(batch, spec(sar_filter="lee"))["sar"])
    assert np.isfinite(out).all()


def test_lee_filter_uses_the_number_of_looks(rng):
    """More looks, less speckle to remove: the image keeps more of its own variation."""
    power = rng.gamma(4.0, 0.25, (1, 32, 32, 1)).astype(np.float32) * np.linspace(1, 5, 32, dtype=np.float32)[:, None]
    valid = np.ones((1, 32, 32), bool)
    kept = [
        float(
            np.abs(
                normalise.lee_filter(power, valid, looks=looks) - normalise.lee_filter(power, valid, looks=0.1)
            ).mean()
        )
        for looks in (1.0, 4.0, 100.0)
    ]
    assert kept[0] < kept[1] < kept[2]


def test_label_is_ignored_where_the_sensor_has_no_data(batch):
    label = np.asarray(seen_label(batch, "sar"))
    assert (label[~batch["sar_valid"]] == IGNORE_LABEL).all()
    np.testing.assert_array_equal(label[batch["sar_valid"]], batch["label"][batch["sar_valid"]])


def test_units_are_inverse_and_floored():
    db = np.array([-30.0, 0.0, 12.5])
    np.testing.assert_allclose(units.linear_to_db(units.db_to_linear(db)), db)
    assert units.linear_to_db(np.float32(0)) == pytest.approx(-60)
