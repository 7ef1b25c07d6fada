"""Scores equal scikit-learn's; absent classes are left out and named."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from hfd_jax.core.errors import WorkdirError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.evaluation.frames import read_evaluation, read_metrics
from hfd_jax.evaluation.metrics import confusion_matrix, counted_by_product, scores


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_scikit_learn_with_ignored_pixels(seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, (3, 20, 20)).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.6, label, rng.integers(0, 5, label.shape)).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = IGNORE_LABEL
    matrix = np.asarray(confusion_matrix(prediction, label, 5))
    np.testing.assert_array_equal(matrix, counted_by_product(prediction, label, 5), "as on accelerators")
    valid = label != IGNORE_LABEL
    truth, guess = label[valid], prediction[valid]
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(truth, guess))
    found = scores(matrix, tuple("abcde"), ignored=int((~valid).sum()))
    np.testing.assert_allclose(found.iou, sk.jaccard_score(truth, guess, average=None))
    np.testing.assert_allclose(found.f1, sk.f1_score(truth, guess, average=None))
    np.testing.assert_allclose(found.precision, sk.precision_score(truth, guess, average=None))
    np.testing.assert_allclose(found.recall, sk.recall_score(truth, guess, average=None))
    assert found.mean_iou == pytest.approx(sk.jaccard_score(truth, guess, average="macro"))
    assert found.macro_f1 == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    assert found.accuracy == pytest.approx(sk.accuracy_score(truth, guess))
    assert found.kappa == pytest.approx(sk.cohen_kappa_score(truth, guess))
    assert found.pixels + found.ignored == label.size


def test_absent_class_is_left_out_and_named():
    found = scores(np.array([[8, 0, 2], [0, 0, 0], [1, 0, 9]]), ("land", "snow", "water"))
    assert found.absent == ("snow",)
    assert found.mean_iou == pytest.approx((8 / 11 + 9 / 12) / 2)
    assert found.to_dict()["per_class"]["snow"]["iou"] is None


def test_class_that_is_only_predicted_counts_as_zero():
    found = scores(np.array([[8, 2], [0, 0]]), ("land", "snow"))
    assert found.absent == () and found.iou[1] == 0 and found.mean_iou == pytest.approx(0.4)


def test_empty_matrix_has_no_score():
    found = scores(np.zeros((2, 2)), ("a", "b"))
    assert np.isnan(found.mean_iou) and found.to_dict()["mean_iou"] is None


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 2\) for 3 classes"):
        scores(np.zeros((2, 2)), ("a", "b", "c"))


def test_frame_has_a_row_per_class_and_the_means():
    found = scores(np.array([[8, 0, 2], [0, 0, 0], [1, 0, 9]]), ("land", "snow", "water"), ignored=4)
    frame = found.to_frame()
    assert list(frame.index) == ["land", "snow", "water", "mean"] and frame["pixels"].tolist() == [10, 0, 10, 20]
    assert frame.loc["water", "iou"] == pytest.approx(9 / 12) and np.isnan(frame.loc["snow", "f1"])
    assert frame.loc["mean", "iou"] == found.mean_iou and frame.loc["mean", "f1"] == found.macro_f1
    assert frame.attrs["kappa"] == found.kappa and frame.attrs["ignored"] == 4


def test_logs_and_evaluations_of_a_run_are_frames(tmp_path):
    lines = ['{"network": "teacher", "step": 2, "loss": 1.5}', '{"network": "student", "step": 4, "kd": 0.25}', '{"net']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    frame = read_metrics(tmp_path)
    assert frame["network"].tolist() == ["teacher", "student"] and frame["loss"][0] == 1.5 and np.isnan(frame["kd"][0])
    row = {"title": "HFD student (SAR)", "step": 4, **scores(np.array([[3, 1], [0, 4]]), ("land", "water")).to_dict()}
    (tmp_path / "evaluation.json").write_text(json.dumps({"test": {"student": row}}))
    frame = read_evaluation(tmp_path)
    assert frame[["split", "network", "title", "step"]].values.tolist() == [["test", "student", "HFD student (SAR)", 4]]
    assert frame["iou land"][0] == 0.75 and frame["accuracy"][0] == pytest.approx(7 / 8)
    for reader, name in ((read_metrics, "metrics.jsonl"), (read_evaluation, "evaluation.json")):
        with pytest.raises(WorkdirError, match=f"{name}: missing.* is .*nowhere the workdir of a run"):
            reader(tmp_path / "nowhere")
