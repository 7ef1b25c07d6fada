"""Scenes that say more than their pixels, as a network reads them: tags, masks, alpha bands, pixel sizes."""

import numpy as np
import pytest
from rasterio.enums import ColorInterp

from hfd_jax.core.errors import DataError
from hfd_jax.data.facts import BandStatistics
from hfd_jax.inference.mapping.listing import find_scenes
from hfd_jax.inference.mapping.reader import Interpretation, Scene, Wanted
from tests.rasters import write


def wanted(sensor="eo", bands=("R", "G", "B"), unit="uint8", pixel_size=10.0):
    numbers = (0.0,) * len(bands)
    return Wanted("network", sensor, bands, unit, BandStatistics(numbers, numbers, numbers, numbers), pixel_size)


def values(path, network, **options):
    with Scene(str(path), network, Interpretation(**options)) as scene:
        return *scene.values(0, 0, 16, 16), scene.notes


def test_sar_scenes_have_their_scale_applied(tmp_path):
    stored = np.full((16, 16, 2), -24, np.int16)
    stored[0] = -999
    write(tmp_path / "s.tif", stored, scales=(0.5, 0.5), offsets=(1.0, 2.0), nodata=-999)
    image, valid, _ = values(tmp_path / "s.tif", wanted("sar", ("VV", "VH"), "db"))
    assert image.dtype == np.float32 and image[5, 5].tolist() == [-11, -10]
    assert not valid[0].any() and valid[1:].all()
    assert values(tmp_path / "s.tif", wanted("sar", ("VV", "VH"), "db"), nodata=-24.0)[1].sum() == 16


def test_optical_scenes_with_a_scale_are_refused_where_training_had_none(tmp_path):
    write(tmp_path / "s.tif", np.full((16, 16, 3), 100, np.uint16), scales=(1e-4,) * 3, offsets=(-0.1,) * 3)
    with pytest.raises(
        DataError, match=r"band 1 has the scale tag 0.0001 and the offset tag -0.1; network was trained on"
    ):
        values(tmp_path / "s.tif", wanted(unit="uint16"))
    image, _, _ = values(tmp_path / "s.tif", wanted(unit="float32"))
    np.testing.assert_allclose(image, -0.09, rtol=1e-6)


def test_alpha_is_a_mask_unless_it_is_a_band(tmp_path):
    image = np.full((16, 16, 4), 9, np.uint8)
    image[:2, :, 3] = 0
    rgba = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    write(tmp_path / "s.tif", image, colorinterp=rgba)
    found, valid, _ = values(tmp_path / "s.tif", wanted())
    assert found.shape == (16, 16, 3) and not valid[:2].any() and valid[2:].all()
    found, valid, _ = values(tmp_path / "s.tif", wanted(bands=("R", "G", "B", "NIR")))
    assert found.shape == (16, 16, 4) and valid.all()


def test_another_pixel_size_is_noted(tmp_path):
    write(tmp_path / "s.tif", np.ones((16, 16, 3), np.uint8), pixel=100.0)
    remark = "its pixels measure 100 m, those of the training data 10 m"
    assert any(remark in note for note in values(tmp_path / "s.tif", wanted())[2])
    for pixel_size in (90.0, 0.0, 0.0001):  # similar; unknown; degrees, as version 0.1 recorded
        assert not any(
            "pixels measure" in note for note in values(tmp_path / "s.tif", wanted(pixel_size=pixel_size))[2]
        )


def test_hidden_companions_are_no_scenes(tmp_path):
    write(tmp_path / "a.TIF", np.ones((16, 16, 3), np.uint8))
    (tmp_path / "._a.TIF").write_bytes(b"\0\5\x16\7")
    assert find_scenes(str(tmp_path)) == [str(tmp_path / "a.TIF")]
