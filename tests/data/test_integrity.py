"""Damage to prepared data is found when they are opened or read, or changes nothing that is read."""

import json
import shutil

import numpy as np
import pytest

from hfd_jax.core.errors import DataError
from hfd_jax.data.builder import prepare
from hfd_jax.data.catalogue import read_dataset
from hfd_jax.data.folder import Folder
from tests.damage import hurt
from tests.rasters import Pairs


@pytest.fixture
def prepared(tmp_path):
    """(source, data set) of four pairs."""
    source = Pairs(tmp_path / "raw").source()
    return source, prepare(Folder, source, str(tmp_path / "data"))


def contents(directory):
    """Everything that training reads: facts, statistics, sizes and tiles."""
    found = read_dataset(str(directory))
    described = {"facts": found.facts.to_dict(), "statistics": found.statistics.to_dict(), "shapes": found.shapes}
    tiles = [tile for split in sorted(found.sizes) for tile in found.source(split)]
    return described, tiles


def equal(one, other):
    return (
        json.dumps(one[0]) == json.dumps(other[0])
        and len(one[1]) == len(other[1])
        and all(np.array_equal(a[name], b[name]) for a, b in zip(one[1], other[1], strict=True) for name in a)
    )


@pytest.mark.parametrize("times", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_damage_to_prepared_data_is_found_or_harmless(prepared, tmp_path, times):
    rng, found = np.random.default_rng(times), 0
    _, directory = prepared
    whole = contents(directory)
    for number in range(times):
        copy = tmp_path / str(number)
        shutil.copytree(directory, copy)
        files = sorted(copy.iterdir())
        path = files[rng.integers(len(files))]
        what = f"{hurt(path, rng)} {path.name}"
        try:
            assert equal(contents(copy), whole), what
        except DataError as error:
            assert str(copy) in str(error), "names the place"
            found += 1
    assert found > times / 2, "much of it matters"
