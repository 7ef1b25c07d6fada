"""Several prepared data sets as one."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from hfd_jax.core.errors import DataError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data import catalogue
from hfd_jax.data.builder import prepare
from hfd_jax.data.facts import Facts
from hfd_jax.data.pipeline import Pool, Reading, evaluation_windows, training_batches, training_pools
from hfd_jax.data.tiles import Tile


@dataclasses.dataclass(frozen=True)
class Flat:
    """Tiles whose SAR is `level` dB throughout; the first class everywhere, or no label in the split `unlabelled`."""

    name: str
    facts: Facts
    counts: tuple[tuple[str, int], ...]
    level: float = -10.0
    size: int = 32

    left_out: ClassVar[dict[str, int]] = {"by hand": 2}
    notes: ClassVar[tuple[str, ...]] = ("blurred",)

    @property
    def settings(self):
        return {"name": self.name}

    def keys(self):
        return {split: [f"{self.name}_{split}_{i}" for i in range(count)] for split, count in self.counts}

    def read(self, key):
        shape = (self.size, self.size)
        sar, everywhere = np.full((*shape, 2), self.level, np.float32), np.ones(shape, bool)
        sar[: self.size // 2] += 2
        label = None if "unlabelled" in key else np.zeros(shape, np.uint8)
        return Tile(key, sar, np.full((*shape, 3), 9, np.uint8), label, everywhere, everywhere)


@pytest.fixture
def data_dir(tmp_path, facts):
    def named(name):
        return dataclasses.replace(facts, name=name)

    chips = Flat("chips", named("chips"), (("train", 3), ("validation", 1), ("test", 2)))
    pairs = Flat("pairs", named("pairs"), (("unlabelled", 4),), level=-14.0, size=64)
    more = Flat("more", named("more"), (("train", 2), ("unlabelled", 1), ("test", 1)))
    for source in (chips, pairs, more):
        prepare(catalogue.Scenes, source, str(tmp_path))
    return str(tmp_path)


def ids(dataset, split):
    return dataset.tile_ids([(split, i) for i in range(dataset.size(split))])


def test_splits_follow_each_other(data_dir):
    dataset = catalogue.find_dataset("scenes/chips, scenes/more", data_dir)
    assert dataset.sizes == {"train": 5, "unlabelled": 1, "validation": 1, "test": 3}
    assert ids(dataset, "train") == [*(f"chips_train_{i}" for i in range(3)), "more_train_0", "more_train_1"]
    assert ids(dataset, "test") == ["chips_test_0", "chips_test_1", "more_test_0"]
    source = dataset.source("train")
    assert source[-1]["id"] == b"more_train_1"
    for outside in (5, -6):
        with pytest.raises(IndexError):
            source[outside]
    assert dataset.statistics.class_pixels == (5 * 32 * 32, 0, 0)
    assert dataset.left_out == {"by hand": 4}
    assert dataset.notes[0] == "chips: blurred"
    assert len(dataset.parts) == 2 and not catalogue.find_dataset("scenes/chips", data_dir).parts


def test_pairs_without_labels_stand_beside_labelled_tiles(data_dir):
    """The second data set normalises as the first, and a large difference between the two is said."""
    dataset = catalogue.find_dataset("scenes/chips,scenes/pairs", data_dir)
    assert dataset.statistics == catalogue.find_dataset("scenes/chips", data_dir).statistics
    assert dataset.largest("unlabelled") == (64, 64) and dataset.shape("train", 2) == (32, 32)
    assert any("sar band VV has mean -13 in pairs" in note for note in dataset.notes)
    labelled, unlabelled = training_pools(dataset, 1.0, seed=0)
    batch = next(
        training_batches(
            dataset, [Pool(labelled, 2), Pool(unlabelled, 2)], Reading((0, 1), (0, 1, 2), threads=0), crop=32, seed=0
        )
    )
    assert [(label == IGNORE_LABEL).all() for label in batch["label"]] == [False, False, True, True]
    assert (batch["sar"][:2].max(), batch["sar"][2:].max()) == (-8, -12)


def test_evaluation_covers_the_tiles_of_all(data_dir):
    dataset = catalogue.find_dataset("scenes/chips,scenes/more", data_dir)
    windows, size = evaluation_windows(dataset, "test")
    assert [window.index for window in windows] == [0, 1, 2] and size == (32, 32)


def test_all_differences_are_named(data_dir, facts):
    other = dataclasses.replace(facts, name="other", sar_unit="raw", class_names=("x", "y", "z"), look_axis="y")
    prepare(catalogue.Scenes, Flat("other", other, (("train", 1),)), data_dir)
    with pytest.raises(DataError, match=r"cannot be joined.*sar_unit is db .* raw in other;.*class_names.*look_axis"):
        catalogue.find_dataset("scenes/chips,scenes/other", data_dir)


def test_a_data_set_named_twice_is_refused(data_dir):
    with pytest.raises(DataError, match="names a data set twice"):
        catalogue.find_dataset("scenes/chips,scenes/chips", data_dir)
    with pytest.raises(DataError, match=r"no prepared data set \(data.name='scenes/none'"):
        catalogue.find_dataset("scenes/chips,scenes/none", data_dir)
