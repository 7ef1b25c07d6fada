"""Contracts of every loss: value, masks, independence of image and batch size, finite on degenerate input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.losses import cross_entropy, masked_mean, soft_dice
from hfd_jax.distill.base import Outputs
from hfd_jax.distill.hfd import HFD, Adapter, channel_errors, standardise
from hfd_jax.distill.kd import logit_loss
from hfd_jax.distill.relations import mask_at


@pytest.fixture
def batch(rng):
    logits = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)
    label = rng.integers(0, 3, (4, 8, 8)).astype(np.uint8)
    label[rng.random(label.shape) < 0.3] = IGNORE_LABEL
    return logits, label


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_cross_entropy_equals_its_formula(batch):
    logits, label = batch
    valid = label != IGNORE_LABEL
    picked = np.take_along_axis(softmax(logits), np.where(valid, label, 0)[..., None].astype(int), -1)[..., 0]
    assert float(cross_entropy(logits, label)) == pytest.approx(-np.log(picked[valid]).mean(), rel=1e-5)
    weights = np.array([0.5, 1.0, 1.5])
    w = weights[label[valid]]
    expected = (-np.log(picked[valid]) * w).sum() / w.sum()
    assert float(cross_entropy(logits, label, tuple(weights))) == pytest.approx(expected, rel=1e-5)


def test_soft_dice_equals_its_formula_and_skips_absent_classes(batch):
    logits, label = batch
    label = np.where(label == 2, IGNORE_LABEL, label)
    valid = label != IGNORE_LABEL
    p = softmax(logits)[valid]
    dice = [2 * p[label[valid] == k, k].sum() / (p[:, k].sum() + (label[valid] == k).sum()) for k in (0, 1)]
    assert float(soft_dice(logits, label)) == pytest.approx(1 - np.mean(dice), rel=1e-4)


def tap_loss(student, teacher, valid):
    one, other = (standardise(x, valid, "image") for x in (student, teacher))
    return jnp.mean(channel_errors(one, other, valid))


def losses_of_pixels(logits, label, teacher):
    valid = label != IGNORE_LABEL
    return {
        "ce": cross_entropy(logits, label),
        "dice": soft_dice(logits, label),
        "logit": logit_loss(logits, teacher, valid),
        "tap": tap_loss(logits, teacher, valid),
    }


def test_ignored_pixels_change_nothing(batch, rng):
    logits, label = batch
    teacher = rng.normal(size=logits.shape).astype(np.float32)
    noise = np.where((label == IGNORE_LABEL)[..., None], 100 * rng.normal(size=logits.shape), 0).astype(np.float32)
    before, after = (
        losses_of_pixels(logits, label, teacher),
        losses_of_pixels(logits + noise, label, teacher + 2 * noise),
    )
    for name in before:
        np.testing.assert_allclose(before[name], after[name], rtol=1e-6, err_msg=name)


def test_a_batch_of_copies_has_the_loss_of_one(batch, rng):
    logits, label = batch
    teacher = rng.normal(size=logits.shape).astype(np.float32)
    many = [np.concatenate([x] * 3) for x in (logits, label, teacher)]
    once, thrice = losses_of_pixels(logits, label, teacher), losses_of_pixels(*many)
    for name in once:
        np.testing.assert_allclose(once[name], thrice[name], rtol=1e-5, err_msg=name)


def test_a_larger_image_of_the_same_content_has_the_same_loss(batch, rng):
    logits, label = batch
    teacher = rng.normal(size=logits.shape).astype(np.float32)
    tiled = [np.concatenate([np.concatenate([x] * 2, 1)] * 2, 2) for x in (logits, label, teacher)]
    once, large = losses_of_pixels(logits, label, teacher), losses_of_pixels(*tiled)
    for name in once:
        np.testing.assert_allclose(once[name], large[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", ["constant", "huge", "nothing valid"])
def test_values_and_gradients_are_finite(dtype, case, rng):
    values = {"constant": np.ones((2, 4, 4, 3)), "huge": 1e4 * rng.normal(size=(2, 4, 4, 3))}.get(
        case, rng.normal(size=(2, 4, 4, 3))
    )
    x = jnp.asarray(values, dtype)
    label = np.full((2, 4, 4), IGNORE_LABEL if case == "nothing valid" else 1, np.uint8)
    for name in ("ce", "dice", "logit", "tap"):
        value, gradient = jax.value_and_grad(lambda x, n=name: losses_of_pixels(x, label, 2 * x)[n])(x)
        assert value.dtype == jnp.float32
        assert np.isfinite(value) and np.isfinite(gradient.astype(np.float32)).all(), name
        if case == "nothing valid":
            assert value == 0 and not gradient.any(), name


def test_logit_loss_equals_its_formula_and_is_zero_for_equal_logits(rng):
    a, b = rng.normal(size=(2, 2, 4, 4, 3)).astype(np.float32)
    valid = rng.random((2, 4, 4)) < 0.7
    p, q = softmax(b / 2.0), softmax(a / 2.0)
    expected = 4 * (p * np.log(p / q)).sum(-1)[valid].mean()
    assert float(logit_loss(a, b, valid, temperature=2.0)) == pytest.approx(expected, rel=1e-4)
    assert float(logit_loss(a, a, valid)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("over", ["image", "batch"])
def test_errors_of_standardised_features_equal_their_formula(over, rng):
    s, t = rng.normal(size=(2, 2, 6, 6, 5)).astype(np.float32)
    mask = rng.random((2, 6, 6)) < 0.6
    expected = []
    for part in ([0], [1]) if over == "image" else ([0, 1],):
        inside_s, inside_t = s[part][mask[part]], t[part][mask[part]]
        inside_s, inside_t = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6) for x in (inside_s, inside_t))
        expected.append((inside_s - inside_t) ** 2)
    found = channel_errors(standardise(s, mask, over), standardise(t, mask, over), mask)
    np.testing.assert_allclose(found, np.concatenate(expected).mean(0), rtol=1e-4)


def test_a_level_remains_and_noise_is_not_amplified_over_the_batch(rng):
    """In an image without contrast, standardising over the image would leave nothing but noise."""
    noise = rng.normal(size=(2, 8, 8, 1)).astype(np.float32)
    x, mask = np.stack([5 + 0.01 * noise[0], noise[1]]), np.ones((2, 8, 8), bool)
    alone, together = (standardise(x, mask, over)[0] for over in ("image", "batch"))
    assert abs(float(alone.mean())) < 1e-2 and float(alone.std()) == pytest.approx(1, abs=0.01)
    assert float(together.mean()) == pytest.approx((x[0].mean() - x.mean()) / x.std(), rel=1e-3)
    assert float(together.std()) < 0.01


def test_standardised_features_ignore_scale_and_offset(rng):
    x = rng.normal(size=(2, 6, 6, 4)).astype(np.float32)
    mask = np.ones((2, 6, 6), bool)
    np.testing.assert_allclose(standardise(x, mask, "image"), standardise(7 * x - 3, mask, "image"), atol=1e-3)


def test_mask_at_counts_a_position_when_half_its_pixels_are_valid():
    valid = np.zeros((1, 4, 4), bool)
    valid[0, :2, :2] = True  # all of the first cell
    valid[0, 0, 2:] = True  # half of the second
    valid[0, 3, 3] = True  # a quarter of the last
    np.testing.assert_array_equal(mask_at(valid, (2, 2))[0], [[True, True], [False, False]])
    with pytest.raises(ValueError, match="4 x 4 pixels does not divide into 3 x 3"):
        mask_at(valid, (3, 3))


def test_hfd_reaches_the_student_and_not_the_teacher(rng):
    student = {t: rng.normal(size=(2, n, n, 4)).astype(np.float32) for t, n in (("C3", 8), ("A", 16))}
    teacher = {t: rng.normal(size=(2, n, n, 6)).astype(np.float32) for t, n in (("C3", 8), ("A", 16))}
    pixels = np.zeros((2, 64, 64), np.int32), np.ones((2, 64, 64), bool)
    module = HFD(taps=("C3", "A"), tap_weights=(1.0, 3.0))
    logits = np.zeros((2, 64, 64, 3), np.float32)
    variables = module.init(jax.random.key(0), Outputs(student, logits), Outputs(teacher, logits), *pixels)

    def terms(student, teacher):
        pair = Outputs(student, logits), Outputs(teacher, logits)
        return module.apply(variables, *pair, *pixels, mutable=["batch_stats"])[0]

    to_student, to_teacher = jax.grad(lambda *pair: terms(*pair)["hfd"], (0, 1))(student, teacher)
    assert all(np.abs(g).max() > 0 for g in to_student.values())
    assert all(np.abs(g).max() == 0 for g in to_teacher.values())
    found = terms(student, teacher)
    mean = float(found["hfd_C3"] + 3 * found["hfd_A"]) / 4
    assert float(found["hfd"]) == pytest.approx(mean / 2, rel=1e-6), "log-variances begin at 0"


@pytest.mark.parametrize(("form", "factor"), [("squared", 1.0), ("likelihood", 0.5)])
def test_hfd_without_a_prediction_costs_no_more_than_the_variance_of_the_target(form, factor, rng):
    """An adapter that gives up on a channel pays its variance, 1; that is what the student's zeros give."""
    student = {"A": np.zeros((2, 16, 16, 4), np.float32)}
    teacher = {"A": rng.normal(size=(2, 16, 16, 6)).astype(np.float32)}
    arguments = Outputs(student, np.zeros((2, 16, 16, 3))), Outputs(teacher, np.zeros((2, 16, 16, 3)))
    pixels = np.zeros((2, 16, 16), np.int32), np.ones((2, 16, 16), bool)
    found, _ = HFD(taps=("A",), form=form).init_with_output(jax.random.key(0), *arguments, *pixels)
    assert float(found["hfd_A"]) == pytest.approx(1.0, rel=1e-4)
    assert float(found["hfd"]) == pytest.approx(factor, rel=1e-4)


def test_the_best_log_variance_is_the_log_of_the_error(rng):
    """There the gradient vanishes, and a channel counts in proportion to 1 / error."""
    student, teacher = ({"A": rng.normal(size=(2, 16, 16, 4)).astype(np.float32)} for _ in range(2))
    arguments = [Outputs(features, np.zeros((2, 16, 16, 3))) for features in (student, teacher)]
    pixels = np.zeros((2, 16, 16), np.int32), np.ones((2, 16, 16), bool)
    module = HFD(taps=("A",))
    variables = module.init(jax.random.key(0), *arguments, *pixels)

    def loss(values):
        params = variables["params"] | {"log_variance_A": values}
        found, _ = module.apply(variables | {"params": params}, *arguments, *pixels, mutable=["batch_stats"])
        return found["hfd"], found["hfd_A"]

    error = channel_errors_of(module, variables, arguments)
    gradient, _ = jax.grad(loss, has_aux=True)(jnp.log(error))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def channel_errors_of(module, variables, arguments):
    """Errors per channel of an HFD module with the tap A, computed outside of it."""
    student, teacher = (outputs.features["A"] for outputs in arguments)
    mask = np.ones(student.shape[:3], bool)
    adapter = Adapter(teacher.shape[-1])
    own = {name: variables[name]["adapter_A"] for name in ("params", "batch_stats")}
    prediction, _ = adapter.apply(own, student, True, mutable=["batch_stats"])
    return channel_errors(prediction, standardise(teacher, mask, module.over), mask)


@pytest.mark.parametrize(
    ("taps", "weights", "expected"),
    [
        (("C3", "C4", "C5", "A"), (), (1 / 7, 1 / 7, 1 / 7, 4 / 7)),  # A counts as much as four others
        (("A", "C3"), (), (4 / 5, 1 / 5)),
        (("A",), (), (1.0,)),
        (("C3", "A"), (1.0, 1.0), (1 / 2, 1 / 2)),
    ],
)
def test_weights_of_hfds_taps(taps, weights, expected):
    assert HFD(taps=taps, tap_weights=weights).weights() == pytest.approx(expected)


def test_unknown_tap_names_the_valid_ones(rng):
    outputs = Outputs({"C3": np.ones((1, 8, 8, 4)), "A": np.ones((1, 16, 16, 4))}, np.ones((1, 64, 64, 2)))
    pixels = np.zeros((1, 64, 64), np.int32), np.ones((1, 64, 64), bool)
    with pytest.raises(ValueError, match="config.distill.hfd compares 'C9'; both networks have C3, A"):
        HFD(taps=("C9",)).init(jax.random.key(0), outputs, outputs, *pixels)


def test_masked_mean_of_nothing_is_zero():
    assert float(masked_mean(np.ones((3, 3)), np.zeros((3, 3), bool))) == 0
