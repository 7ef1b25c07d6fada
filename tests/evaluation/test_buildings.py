"""The SpaceNet building score: cases worked out by hand, and a whole split under a network whose answer is known."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapely import box

from hfd_jax.core.errors import ConfigError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.parallel import make_parallel
from hfd_jax.core.workdir import Workdir
from hfd_jax.data import catalogue
from hfd_jax.data.augment import Augmentation
from hfd_jax.data.builder import prepare
from hfd_jax.data.facts import BandStatistics, Facts
from hfd_jax.data.inputs import InputSpec
from hfd_jax.data.normalise import Normalisation
from hfd_jax.data.pipeline import Reading
from hfd_jax.data.tiles import Tile
from hfd_jax.evaluation import buildings, evaluator
from hfd_jax.evaluation.buildings import BuildingScore, building_class, match, score_tile
from hfd_jax.evaluation.evaluator import Evaluator, evaluate_workdir
from hfd_jax.evaluation.metrics import scores
from hfd_jax.inference.restore import Network

HOUSE = box(0, 0, 20, 10)  # 200 pixels


@pytest.mark.parametrize(
    ("proposals", "confidences", "truths", "expected"),
    [
        ([HOUSE], [0.9], [HOUSE], (1, 0, 0)),
        ([box(0, 0, 10, 10)], [0.9], [HOUSE], (0, 1, 1)),  # 100 of 200: an IoU of 0.5 is not over 0.5
        ([box(0, 0, 10.1, 10)], [0.9], [HOUSE], (1, 0, 0)),
        ([HOUSE, box(0, 0, 18, 10)], [0.5, 0.9], [HOUSE], (1, 1, 0)),  # two on one truth
        ([HOUSE], [0.9], [], (0, 1, 0)),
        ([], [], [HOUSE], (0, 0, 1)),
        ([], [], [], (0, 0, 0)),
        ([box(50, 0, 70, 10)], [0.9], [HOUSE], (0, 1, 1)),  # apart
        ([box(0, 0, 40, 10)], [0.9], [HOUSE, box(20, 0, 40, 10)], (0, 1, 2)),  # one on two neighbours
        ([box(0, 0, 10, 8), box(0, 20, 10, 27.9)], [0.9, 0.9], [box(0, 0, 10, 8), box(0, 20, 10, 27.9)], (1, 0, 0)),
        ([HOUSE], [0.9], [box(0, 0, 7, 11)], (0, 1, 0)),  # the truth is too small to count, the proposal is not
        ([box(0, 0, 7, 11)], [0.9], [HOUSE], (0, 0, 1)),  # and the other way round
    ],
)
def test_one_image(proposals, confidences, truths, expected):
    assert dataclasses.astuple(match(proposals, confidences, truths)) == expected


def test_components_are_matched_in_the_order_of_confidence():
    """A and B overlap both truths; the one matched first takes the truth that it overlaps most."""
    truths = [box(0, 0, 100, 10), box(0, 8, 100, 18)]  # they overlap, as drawn footprints may
    a, b = box(0, 3, 100, 13), box(0, 0, 100, 11)
    # a: IoU 7 / 13 with the first truth, 5 / 15 with the second; b: 10 / 11 with the first, 3 / 18 with the second.
    assert match([a, b], [0.9, 0.1], truths) == BuildingScore(1, 1, 1)
    assert match([b, a], [0.1, 0.9], truths) == BuildingScore(1, 1, 1)
    c = box(0, 4, 100, 16)  # 6 / 16 with the first, 8 / 14 with the second
    assert match([c, b], [0.9, 0.1], truths) == BuildingScore(2, 0, 0)
    wide = box(0, 0, 100, 17)  # 10 / 17 with the first, 9 / 18 with the second
    assert match([wide, b], [0.9, 0.1], truths) == BuildingScore(1, 1, 1), "the first truth is taken, b finds nothing"
    assert match([wide, b], [0.1, 0.9], truths) == BuildingScore(1, 1, 1), "0.5 with the second is not enough"
    wider = box(0, 0, 100, 17.5)  # 10 / 17.5 with the first, 9.5 / 18 with the second
    assert match([wider, b], [0.9, 0.1], truths) == BuildingScore(1, 1, 1)
    assert match([wider, b], [0.1, 0.9], truths) == BuildingScore(2, 0, 0), "b first: both find one"


def test_counts_of_all_images_are_pooled():
    total = sum([BuildingScore(3, 1, 0), BuildingScore(0, 0, 4), BuildingScore(1, 0, 0)], BuildingScore())
    assert (total.precision, total.recall, total.f1) == (4 / 5, 4 / 8, 8 / 13)
    assert total.to_dict()["false_negatives"] == 4
    nothing = BuildingScore().to_dict()
    assert nothing["f1"] is None and nothing["precision"] is None and nothing["true_positives"] == 0
    assert BuildingScore(0, 0, 2).f1 == 0


def test_class_maps_against_labels():
    reference, prediction = np.zeros((2, 50, 60), np.uint8)
    reference[0:10, 0:10] = prediction[0:10, 0:10] = 1
    reference[20:30, 0:10] = 1
    prediction[20:26, 0:10] = 1  # 60 pixels: too few to be a proposal
    reference[20:30, 20:30] = 1
    prediction[20:30, 20:28] = 1
    reference[30:40, 30:40] = 1  # touches the one before at a corner: another building
    prediction[0:10, 50:60] = 1  # nothing is there
    prediction[40:50, 40:60] = 1
    reference[40:50, 45:60] = IGNORE_LABEL  # of this proposal 50 pixels are left: it does not count
    probability = np.full(reference.shape, 0.9, np.float32)
    assert score_tile(reference, prediction, probability, 1) == BuildingScore(2, 1, 2)


def test_confidence_is_the_mean_probability_of_a_component(monkeypatch):
    seen = []
    monkeypatch.setattr(buildings, "match", lambda *given: seen.append(given))
    prediction = np.zeros((20, 30), np.uint8)
    prediction[0:10, 0:10] = prediction[0:10, 20:30] = 1
    probability = np.linspace(0.6, 0.9, 30, dtype=np.float32) + np.zeros((20, 1), np.float32)
    score_tile(np.zeros_like(prediction), prediction, probability, 1)
    (proposals, confidences, truths), = seen  # fmt: skip
    for shape, confidence in zip(proposals, confidences, strict=True):
        left, _, right, _ = (int(v) for v in shape.bounds)
        assert confidence == pytest.approx(probability[:10, left:right].mean())
    assert len(proposals) == 2 and len(truths) == 0


def test_the_class_is_found_by_its_name():
    assert building_class(("background", "building")) == building_class(("land", "buildings", "building")) == "building"
    assert building_class(("grass", "water", "buildings")) == "buildings"
    assert building_class(("grass", "water"), "water") == "water"
    with pytest.raises(ConfigError, match="no class called building; expected one of: land, water"):
        building_class(("land", "water"))
    with pytest.raises(ConfigError, match="no class 'watr'; did you mean 'water'"):
        building_class(("building", "water"), "watr")


FACTS = Facts(
    "towns", ("VV",), ("G",), "uint8", "db", ("land", "building"), ((0, 0, 0), (9, 9, 9)), "x", pixel_size=1.0
)


@dataclasses.dataclass(frozen=True)
class TownSource:
    """Three tiles of 48 x 80; the building of a tile shows in its SAR image, which has no data in the last ten rows."""

    left_out = {}  # noqa: RUF012
    notes = ()
    name: str = "towns"
    facts: Facts = FACTS
    settings = {}  # noqa: RUF012

    def keys(self):
        return {"train": range(1), "test": range(3)}

    def read(self, key):
        label = np.zeros((48, 80), np.uint8)
        label[10:24, 20 + key : 70] = 1
        label[36:48, 0:20] = 1  # 2 of its 12 rows are seen: below 80 pixels
        seen = np.arange(48)[:, None] < 38 + np.zeros((1, 80))
        sar = np.where(label == 1, 5.0, -5.0).astype(np.float32)[..., None]
        sar[16, 44:48] = -5.0  # a hole that no label has
        return Tile(f"t{key}", sar, np.zeros((48, 80, 1), np.uint8), label, seen, np.ones((48, 80), bool))


class Oracle:
    """Sees a building where the signal is above 0; its logits there are 0 and 2."""

    classes = 2

    def apply(self, variables, x, train):
        return jnp.concatenate([0 * x, jnp.where(x > 0, 2.0, -2.0) * variables["sign"]], -1), {}


ONE_BAND = BandStatistics((0.0,), (1.0,), (-1.0,), (1.0,))
INPUTS = InputSpec(ONE_BAND, ONE_BAND, Normalisation(), Augmentation(), "x")


@pytest.fixture(scope="module")
def towns(tmp_path_factory):
    return catalogue.read_dataset(prepare(catalogue.Scenes, TownSource(), str(tmp_path_factory.mktemp("towns"))))


def make_network(parallel, sign=1.0):
    bands = {"sar": list(FACTS.sar_bands), "eo": list(FACTS.eo_bands)}
    record = {"title": "oracle", "step": 7, "sensor": "sar", "facts": FACTS.to_dict(), "bands": bands}
    return Network(record, Oracle(), INPUTS, parallel.replicate({"sign": np.float32(sign)}))


def make_evaluator(towns, parallel, batch_size=2, window=0):
    return Evaluator(towns, "test", Reading((0,), (0,), threads=1), parallel, batch_size, window)


@pytest.mark.parametrize(
    ("kind", "devices", "batch_size", "window"), [("jit", 1, 2, 0), ("jit", 2, 4, 32), ("pmap", 4, 8, 32)]
)
def test_whole_tiles_come_back_in_order_from_any_windows_and_devices(towns, kind, devices, batch_size, window):
    parallel = make_parallel(kind, jax.devices()[:devices])
    evaluator = make_evaluator(towns, parallel, batch_size, window)
    maps = list(evaluator.class_maps(make_network(parallel), 1))
    assert len(maps) == 3
    for key, tile in enumerate(maps):
        raw = TownSource().read(key)
        np.testing.assert_array_equal(tile["label"], np.where(raw.sar_valid, raw.label, IGNORE_LABEL))
        seen = raw.sar_valid
        np.testing.assert_array_equal(tile["prediction"][seen], (raw.sar[..., 0] > 0)[seen])
        expected = 1 / (1 + np.exp(np.where(raw.sar[..., 0] > 0, -2.0, 2.0)))
        np.testing.assert_allclose(tile["probability"][seen], expected[seen], rtol=1e-5)


def test_the_score_of_a_split_is_kept_until_the_network_changes(towns, tmp_path, monkeypatch):
    parallel = make_parallel("jit", jax.devices()[:1])
    of_split, workdir = make_evaluator(towns, parallel), Workdir(str(tmp_path))
    network = make_network(parallel)
    for module in (evaluator, buildings):
        monkeypatch.setattr(module, "load_network", lambda *_: network)
    checkpoints = {"student": ("anywhere", "latest")}

    def row():
        return json.loads((tmp_path / "evaluation.json").read_text())["test"]["student"]

    def evaluate_with(matrix):
        known = {"student": scores(np.array(matrix), FACTS.class_names)}
        return evaluate_workdir(workdir, checkpoints, of_split, parallel, panels=0, known=known)

    of_title, written = evaluate_with([[5, 1], [1, 5]])
    assert written == ["evaluation.json", "figures/confusion_test.png"], "no panel is announced without one"
    assert all((tmp_path / path).is_file() for path in written)
    lines = [line.split() for line in evaluator.table(of_title).splitlines()]
    # IoU 5 / 7 of either class, F1 and accuracy 10 / 12, kappa (10 / 12 - 1 / 2) / (1 / 2).
    assert lines[0] == ["land", "building", "mIoU", "macro", "F1", "accuracy", "kappa", "ignored", "px"]
    assert lines[1] == ["oracle", "0.7143", "0.7143", "0.7143", "0.8333", "0.8333", "0.6667", "0"]
    empty = evaluator.table({"none": scores(np.array([[3, 0], [0, 0]]), FACTS.class_names)}).splitlines()[1].split()
    assert empty[:4] == ["none", "1.0000", "-", "1.0000"], "a class that does not occur has no score"
    result = buildings.score_workdir(workdir, checkpoints, of_split, parallel, "building")
    assert result == {"oracle": BuildingScore(3, 0, 0)}
    assert row()["buildings"] == {
        "class": "building", "precision": 1.0, "recall": 1.0, "f1": 1.0, "true_positives": 3, "false_positives": 0,
        "false_negatives": 0,
    }  # fmt: skip
    assert row()["step"] == 7 and row()["confusion_matrix"] == [[5, 1], [1, 5]]
    text = buildings.table(result, "building")
    assert [line.split() for line in text.splitlines()][1] == ["oracle", "1.0000", "1.0000", "1.0000", "3", "0", "0"]

    evaluate_with([[5, 1], [1, 5]])
    assert row()["buildings"]["true_positives"] == 3, "the same network: its score stays"
    evaluate_with([[5, 1], [2, 4]])
    assert "buildings" not in row(), "another one: its score would be the old one's"

    network = make_network(parallel, sign=-1.0)
    result = buildings.score_workdir(workdir, checkpoints, of_split, parallel, "building")
    # All that is not a building is one proposal, and so is the hole, of 4 pixels.
    assert result == {"oracle": BuildingScore(0, 3, 3)}
