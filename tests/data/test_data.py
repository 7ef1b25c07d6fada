"""Prepared data sets and the batches read from them."""

import dataclasses
import os

import numpy as np
import pytest

from hfd_jax.core.errors import DataError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data import catalogue
from hfd_jax.data.builder import prepare
from hfd_jax.data.facts import Facts, Statistics, StatisticsAccumulator
from hfd_jax.data.pipeline import (
    Pool,
    Reading,
    batch_refs,
    evaluation_batches,
    evaluation_windows,
    training_batches,
    training_pools,
)
from hfd_jax.data.simulator import SceneOptions, simulate
from hfd_jax.data.tiles import Tile, check_tile
from hfd_jax.train.networks import student_spec, teacher_spec

ALL = Reading(sar_index=(0, 1), eo_index=(0, 1, 2, 3), threads=2)


@dataclasses.dataclass(frozen=True)
class OddSource:
    """Tiles of different sizes; tile k is filled with k."""

    facts: Facts
    sizes: tuple[tuple[int, int], ...] = ((40, 50), (33, 70), (64, 64))
    fails: bool = False

    name = "odd"
    settings = {"tiles": "odd"}  # noqa: RUF012
    left_out = {}  # noqa: RUF012
    notes = ()

    def keys(self):
        # The order of splits must not matter.
        return {"test": range(len(self.sizes)), "train": range(len(self.sizes))}

    def read(self, key):
        if self.fails and key == 2:
            raise KeyboardInterrupt
        h, w = self.sizes[key]
        everywhere = np.ones((h, w), bool)
        grid = np.arange(h * w).reshape(h, w)
        sar = np.stack([np.full((h, w), float(-key)), -grid / 1000], -1).astype(np.float32)
        eo = np.full((h, w, 3), key + 1, np.uint8)
        return Tile(f"odd_{key}", sar, eo, np.full((h, w), key % 3, np.uint8), everywhere, everywhere)


@pytest.fixture
def odd(tmp_path, facts):
    source = OddSource(facts)
    return catalogue.read_dataset(prepare(catalogue.Scenes, source, str(tmp_path)))


def test_prepared_scenes_equal_the_simulator(scenes):
    assert scenes.sizes == {"train": 24, "validation": 6, "test": 10}
    stored, scene = scenes.source("test")[3], simulate(24 + 6 + 3, SceneOptions())
    assert stored["id"] == b"scene_33"
    for name in ("sar", "eo", "label"):
        np.testing.assert_array_equal(stored[name], getattr(scene, name))


def test_statistics_are_those_of_the_training_tiles(scenes):
    tiles = [simulate(i, SceneOptions()) for i in range(24)]
    sar = np.concatenate([t.sar.reshape(-1, 2) for t in tiles]).astype(np.float64)
    np.testing.assert_allclose(scenes.statistics.sar.mean, sar.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scenes.statistics.sar.std, sar.std(0), rtol=1e-6)
    pixels = np.bincount(np.concatenate([t.label.ravel() for t in tiles]), minlength=5)
    assert scenes.statistics.class_pixels == tuple(pixels)
    # Percentiles come from a sample of some 6000 pixels.
    np.testing.assert_allclose(scenes.statistics.sar.low, np.percentile(sar, 1, axis=0), atol=1.5)


def test_statistics_skip_invalid_pixels_and_survive_constant_bands(facts):
    accumulator = StatisticsAccumulator(facts)
    sar, eo = np.full((4, 4, 2), 999.0, np.float32), np.full((4, 4, 3), 7, np.uint8)
    valid = np.zeros((4, 4), bool)
    valid[0], sar[0] = True, [[-10, -20], [-12, -20], [-10, -20], [-12, -20]]
    accumulator.add(sar, eo, np.full((4, 4), IGNORE_LABEL, np.uint8), valid, np.ones((4, 4), bool))
    found = accumulator.finish()
    assert found.sar.mean == (-11.0, -20.0) and found.sar.std == (1.0, 1.0) and found.class_pixels == (0, 0, 0)
    assert Statistics.from_dict(found.to_dict()) == found


def test_statistics_without_valid_pixels_are_an_error(facts):
    with pytest.raises(DataError, match="no valid pixel"):
        StatisticsAccumulator(facts).finish()


def test_simulated_set_with_unlabelled_share(tmp_path):
    source = catalogue.SceneSource(SceneOptions(unlabelled_share=0.75), train=8, validation=0, test=2)
    dataset = catalogue.prepare_scenes(source, str(tmp_path))
    assert dataset.sizes == {"train": 2, "unlabelled": 6, "test": 2}
    assert (dataset.source("unlabelled")[0]["label"] == IGNORE_LABEL).all()
    labelled, unlabelled = training_pools(dataset, 1.0, seed=0)
    assert len(labelled) == 2 and len(unlabelled) == 6


def test_interrupted_preparation_leaves_nothing_that_looks_complete(tmp_path, facts):
    with pytest.raises(KeyboardInterrupt):
        prepare(catalogue.Scenes, OddSource(facts, fails=True), str(tmp_path))
    assert catalogue.list_datasets(str(tmp_path)) == []
    prepare(catalogue.Scenes, OddSource(facts), str(tmp_path))
    assert catalogue.list_datasets(str(tmp_path)) == [os.path.join("scenes", "odd")]


def test_a_missing_data_set_lists_the_existing_ones(scenes_dir, scenes):
    with pytest.raises(DataError, match=r"folder/nope.*existing: scenes/.*tools.prepare_data --dataset=folder"):
        catalogue.find_dataset("folder/nope", scenes_dir)
    with pytest.raises(DataError, match="no split 'tset'; did you mean 'test'"):
        scenes.size("tset")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sar": np.zeros((4, 4, 3), np.float32)}, r"sar is float32\[4, 4, 3\]; expected float32\[4, 4, 2\]"),
        ({"eo": np.zeros((4, 5, 3), np.uint8)}, r"eo is uint8\[4, 5, 3\]; expected uint8\[4, 4, 3\]"),
        ({"sar": np.full((4, 4, 2), np.nan, np.float32)}, "sar holds NaN"),
        ({"sar": np.full((4, 4, 2), 900, np.float32)}, "SAR values from 900 to 900.*'linear' or 'raw'"),
        ({"label": np.full((4, 4), 9, np.uint8)}, r"label holds \[9\]; classes are 0 to 2, or 255"),
    ],
)
def test_bad_tile_is_named(facts, change, message):
    good = Tile(
        "t7", np.zeros((4, 4, 2), np.float32), np.zeros((4, 4, 3), np.uint8), None, *[np.ones((4, 4), bool)] * 2
    )
    check_tile(good, facts)
    with pytest.raises(DataError, match="tile t7: " + message):
        check_tile(dataclasses.replace(good, **change), facts)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def same(one, other):
    return all(np.array_equal(one[k], other[k]) for k in one)


def batches_of(dataset, pools=None, **kwargs):
    pools = pools or [Pool(training_pools(dataset, 1.0, 0)[0], 8)]
    return training_batches(dataset, pools, ALL, **{"crop": 32, "seed": 1, **kwargs})


def test_training_batches_repeat_and_restart_exactly_at_any_step(scenes):
    first, again = take(batches_of(scenes), 8), take(batches_of(scenes), 8)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    resumed = take(batches_of(scenes, start_step=5), 3)
    assert all(same(a, b) for a, b in zip(first[5:], resumed, strict=True))
    assert not same(first[0], take(batches_of(scenes, seed=2), 1)[0])


def test_every_epoch_sees_every_tile_once_in_another_order(scenes):
    order = np.concatenate([b["index"] for b in take(batches_of(scenes), 6)])
    assert sorted(order[:24]) == sorted(order[24:]) == list(range(24))
    assert list(order[:24]) != list(order[24:])


def test_two_processes_read_the_samples_of_one(scenes):
    whole = take(batches_of(scenes), 3)
    halves = [take(batches_of(scenes, process=(p, 2)), 3) for p in (0, 1)]
    for step in range(3):
        together = {name: np.concatenate([h[step][name] for h in halves]) for name in whole[step]}
        assert same(together, whole[step]), "in the same order, too"


def test_tiles_of_a_batch_are_known_without_reading_them(scenes):
    labelled, unlabelled = training_pools(scenes, 0.25, seed=3)
    pools = [Pool(labelled, 2), Pool(unlabelled, 6)]
    for step, batch in enumerate(take(batches_of(scenes, pools), 4)):
        refs = batch_refs(pools, seed=1, step=step)
        assert [ref.index for ref in refs] == batch["index"].tolist()
        assert [ref.labelled for ref in refs] == (~(batch["label"] == IGNORE_LABEL).all((1, 2))).tolist()


def test_worker_processes_read_the_same(scenes):
    reading = dataclasses.replace(ALL, workers=2)
    pools = [Pool(training_pools(scenes, 1.0, 0)[0], 8)]
    one = take(batches_of(scenes), 3)
    other = take(training_batches(scenes, pools, reading, crop=32, seed=1), 3)
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_pools_fill_their_share_of_every_batch(scenes):
    labelled, unlabelled = training_pools(scenes, 0.25, seed=3)
    assert (len(labelled), len(unlabelled)) == (6, 18)
    assert {r.index for r in labelled} | {r.index for r in unlabelled} == set(range(24))
    for batch in take(batches_of(scenes, [Pool(labelled, 2), Pool(unlabelled, 6)]), 4):
        hidden = (batch["label"] == IGNORE_LABEL).all((1, 2))
        assert hidden.sum() == 6
        assert set(batch["index"][~hidden]) <= {r.index for r in labelled}


def test_label_choice_follows_the_seed(scenes):
    assert training_pools(scenes, 0.25, seed=3)[0] == training_pools(scenes, 0.25, seed=3)[0]
    assert training_pools(scenes, 0.25, seed=3)[0] != training_pools(scenes, 0.25, seed=4)[0]


def test_crops_lie_within_the_tile_and_small_tiles_are_padded(odd):
    reading = Reading((0, 1), (2, 0), threads=1)
    pools = [Pool(training_pools(odd, 1.0, 0)[0], 3)]
    for batch in take(training_batches(odd, pools, reading, crop=64, seed=0), 4):
        assert batch["sar"].shape == (3, 64, 64, 2) and batch["eo"].shape == (3, 64, 64, 2)
        for k, index in enumerate(batch["index"]):
            h, w = min(odd.shape("train", index)[0], 64), min(odd.shape("train", index)[1], 64)
            assert batch["sar_valid"][k].sum() == h * w and batch["sar_valid"][k][:h, :w].all()
            assert (batch["label"][k][:h, :w] == index % 3).all()
            assert (batch["label"][k][h:] == IGNORE_LABEL).all()
            assert (batch["sar"][k][:h, :w, 0] == -index).all()


@pytest.mark.parametrize("window", [0, 32])
def test_evaluation_covers_every_pixel_once(odd, window):
    windows, shape = evaluation_windows(odd, "test", window)
    assert shape[0] % 32 == 0 and shape[1] % 32 == 0
    seen = {k: np.zeros(odd.shape("test", k), int) for k in range(3)}
    reading = Reading((0, 1), (0, 1, 2), threads=1)
    position = iter(windows)
    for batch in evaluation_batches(odd, windows, shape, reading, batch_size=4):
        for k, index in enumerate(batch["index"]):
            if index < 0:
                assert not batch["sar_valid"][k].any() and (batch["label"][k] == IGNORE_LABEL).all()
                continue
            w = next(position)
            h, wd = seen[index].shape
            part = seen[index][w.row : w.row + shape[0], w.col : w.col + shape[1]]
            part += batch["sar_valid"][k][: part.shape[0], : part.shape[1]]
            # The second band counts pixels: the window lies where it says.
            expected = (-np.arange(h * wd).reshape(h, wd) / 1000)[w.row : w.row + shape[0], w.col : w.col + shape[1]]
            np.testing.assert_allclose(batch["sar"][k][: part.shape[0], : part.shape[1], 1], expected, rtol=1e-6)
    assert all((count == 1).all() for count in seen.values())


def test_two_processes_share_the_evaluation(odd):
    windows, shape = evaluation_windows(odd, "test", 32)
    reading = Reading((0, 1), (0, 1, 2), threads=1)
    halves = [list(evaluation_batches(odd, windows, shape, reading, batch_size=4, process=(p, 2))) for p in (0, 1)]
    assert len(halves[0]) == len(halves[1])
    pixels = sum(batch["sar_valid"].sum() for half in halves for batch in half)
    assert pixels == sum(h * w for h, w in OddSource.sizes)


def test_a_student_with_unlabelled_pairs_sees_the_labelled_crops_of_one_without(scenes):
    labelled, unlabelled = training_pools(scenes, 0.25, seed=3)
    alone = take(batches_of(scenes, [Pool(labelled, 4)]), 5)
    both = take(batches_of(scenes, [Pool(labelled, 4), Pool(unlabelled, 8)]), 5)
    for one, other in zip(alone, both, strict=True):
        assert same(one, {name: values[:4] for name, values in other.items()})
        assert other["index"].shape == (12,)


def test_unlabelled_pairs_come_beside_a_full_batch_of_labelled_ones(scenes):
    from configs import default
    from hfd_jax.train import reading

    config = default.get_config()
    config.data.label_share, config.data.unlabelled_ratio = 0.5, 2.0
    pools = reading.make_pools(config, scenes, student_spec(config))
    assert [(len(pool.refs), pool.per_batch) for pool in pools] == [(12, 16), (12, 32)]
    config.data.unlabelled_ratio = 0.0
    assert [pool.per_batch for pool in reading.make_pools(config, scenes, student_spec(config))] == [16]
    config.data.unlabelled_ratio = 1.0
    assert [pool.per_batch for pool in reading.make_pools(config, scenes, teacher_spec())] == [16]
