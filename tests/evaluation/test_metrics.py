"""Scores equal scikit-learn's; absent classes are left out and named."""

import numpy as np
import pytest
from sklearn import metrics as sk

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.evaluation.metrics import confusion_matrix, scores


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_scikit_learn_with_ignored_pixels(seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, (3, 20, 20)).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.6, label, rng.integers(0, 5, label.shape)).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = IGNORE_LABEL
    matrix = np.asarray(confusion_matrix(prediction, label, 5))
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
