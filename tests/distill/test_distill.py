"""The defining property of each distillation method, and the rules that all methods follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.distill import cirkd, fakd
from hfd_jax.distill.base import LOGITS, Outputs
from hfd_jax.distill.registry import METHODS
from hfd_jax.distill.relations import nodes, resized
from hfd_jax.distill.trust import trusted
from hfd_jax.train import build
from hfd_jax.train.networks import student_spec
from tests.pairs import (
    KEY,
    NEEDS_LABELS,
    WITHOUT_PARAMETERS,
    cells,
    flat,
    kl,
    length_one,
    make_pair,
    module,
    run,
    softmax,
    variables_of,
)

# The defining property of each method.


def loss_of(name, student, teacher, label, valid):
    return float(run(name, (student, teacher, label, valid), train=False)[0][name])


def with_feature(outputs, feature):
    return Outputs({"A": np.asarray(feature, np.float32)}, outputs.logits)


def with_logits(outputs, logits):
    return Outputs(outputs.features, np.asarray(logits, np.float32))


def rotation(channels, rng):
    return np.linalg.qr(rng.normal(size=(channels, channels)))[0]


def test_kd_is_zero_at_equality():
    student, teacher, label, valid = make_pair()
    assert loss_of("kd", with_logits(student, teacher.logits), teacher, label, valid) == pytest.approx(0, abs=1e-6)


def test_attention_is_invariant_to_a_positive_factor():
    student, *others = make_pair()
    factors = np.array([3.0, 7.0])[:, None, None, None]
    scaled = with_feature(student, factors * student.features["A"])
    assert loss_of("attention", scaled, *others) == pytest.approx(loss_of("attention", student, *others), rel=1e-4)


def test_cwd_is_invariant_to_channel_offsets():
    student, *others = make_pair()
    shifted = with_logits(student, student.logits + np.array([5.0, -3.0, 1.0]))
    assert loss_of("cwd", shifted, *others) == pytest.approx(loss_of("cwd", student, *others), rel=1e-4)
    assert loss_of("kd", shifted, *others) != pytest.approx(loss_of("kd", student, *others), rel=0.1)


@pytest.mark.parametrize("name", ["skd", "ifvd"])
def test_relations_are_invariant_to_a_rotation_of_channels(name, rng):
    student, *others = make_pair()
    rotated = with_feature(student, student.features["A"] @ rotation(3, rng))
    assert loss_of(name, rotated, *others) == pytest.approx(loss_of(name, student, *others), rel=1e-4)


def test_nfd_is_invariant_to_scale_and_offset_of_channels():
    student, teacher, label, valid = make_pair()
    changed = with_feature(teacher, teacher.features["A"] * np.array([2.0, 5.0, 3.0, 9.0]) + np.arange(4))
    before, after = (loss_of("nfd", student, other, label, valid) for other in (teacher, changed))
    assert after == pytest.approx(before, rel=1e-4)
    before, after = (loss_of("fitnet", student, other, label, valid) for other in (teacher, changed))
    assert after > 2 * before


def test_aicsd_is_invariant_to_class_offsets():
    student, *others = make_pair()
    shifted = with_logits(student, student.logits + np.array([5.0, -3.0, 1.0]))
    assert loss_of("aicsd", shifted, *others) == pytest.approx(loss_of("aicsd", student, *others), rel=1e-4)


def test_fakd_bounds_the_loss_with_random_features(rng):
    """Compares with 4000 draws of Gaussian logits with the covariance of their class; the mean is accurate to 3 %."""
    student, teacher, label, valid = make_pair()
    plain = module("fakd", strength=0.0, ramp=False).apply({}, student, teacher, label, valid)["fakd"]
    expected = kl(softmax(teacher.logits), softmax(student.logits))[valid].mean()
    assert float(plain) == pytest.approx(expected, rel=1e-4), "without augmentation: logit distillation"
    group, draws = teacher.logits.argmax(-1), []
    for k in range(3):
        z, t = (x[valid & (group == k)] for x in (student.logits, teacher.logits))
        noise = rng.multivariate_normal(np.zeros(3), 0.5 * np.cov(z.T, bias=True), size=(4000, len(z)))
        draws.append(kl(softmax(t), softmax(z + noise)).mean(0))
    sampled = np.concatenate(draws).mean()
    assert expected < sampled < loss_of("fakd", student, teacher, label, valid)
    variances = fakd.difference_variances(jnp.asarray(student.logits), group, valid)
    for k in range(3):
        z = student.logits[valid & (group == k)]
        np.testing.assert_allclose(variances[k], (z[:, :, None] - z[:, None, :]).var(0), rtol=1e-4, atol=1e-4)


def test_fakd_needs_no_array_of_pixels_times_squared_classes():
    shapes = [((1, 64, 64, 21), np.float32), ((1, 64, 64), np.int32), ((1, 64, 64), bool)]
    inputs = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    gradient = jax.grad(lambda *arrays: fakd.difference_variances(*arrays).sum())
    used = jax.jit(gradient).lower(*inputs).compile().memory_analysis().temp_size_in_bytes
    assert used < 10 * 4 * 64 * 64 * 21, "a few arrays of the logits' size, not 21"


def test_fakd_pushes_down_the_scale_of_large_logits_through_the_classifier_alone(rng):
    """The teacher agrees with the student, so that only the variances have a gradient."""
    feature, kernel = rng.normal(size=(2, 4, 4, 3)).astype(np.float32), rng.normal(size=(3, 3)).astype(np.float32)
    _, _, label, valid = make_pair()

    def classified(scale, feature):
        return jax.image.resize(scale * feature @ kernel, (2, 8, 8, 3), "bilinear")

    def loss(scale, strength):
        student, teacher = (Outputs({"A": feature}, classified(s, feature)) for s in (scale, 10.0))
        return module("fakd", ramp=False).clone(strength=strength).apply({}, student, teacher, label, valid)["fakd"]

    def variance(scale, feature):
        logits = fakd.with_constant_feature(classified(scale, feature), feature)
        return fakd.difference_variances(logits, jnp.argmax(logits, -1), valid).sum()

    by_scale = jax.jit(jax.grad(loss))
    assert by_scale(10.0, 0.5) > 1 > 1e-3 > abs(by_scale(10.0, 0.0)), "logit distillation alone is satisfied"
    total, (by_scale, by_feature) = jax.device_get(jax.jit(jax.value_and_grad(variance, (0, 1)))(2.0, feature))
    assert np.isclose(by_scale, total, rtol=1e-3), "V is quadratic in the weights: 2 V / scale"
    assert np.abs(by_feature).max() < 1e-4 * by_scale, "S_c is a constant"


def test_a_method_counts_the_steps_of_its_training():
    pair, kd = make_pair(), METHODS["kd"](adaptive=True, steps=4)
    state, losses = kd.init(KEY, *pair), []
    for _ in range(5):
        terms, state = kd.apply(state, *pair, mutable=["memory"])
        losses.append(float(terms["kd"]))
    plain = float(METHODS["kd"]().apply({}, *pair)["kd"])
    assert np.allclose(losses, [3 * plain, plain, plain / 3, 0, 0], rtol=1e-5), "(1 - a) / a"


def test_the_fused_loss_of_disoptnet_needs_labels_and_its_other_losses_do_not():
    student, teacher, label, valid = make_pair()
    unlabelled = np.full_like(label, IGNORE_LABEL)
    labelled, without = (run("disoptnet", (student, teacher, x, valid), train=False)[0] for x in (label, unlabelled))
    assert labelled["disoptnet_fused"] > 0 == without["disoptnet_fused"]
    for part in ("feature", "hard", "soft"):
        assert labelled[f"disoptnet_{part}"] == without[f"disoptnet_{part}"] > 0


# Rules for every method.

every_method = pytest.mark.parametrize("name", list(METHODS))


def test_the_config_has_every_method_and_builds_its_module():
    config = default.get_config()
    config.distill.method = tuple(METHODS)
    combined = build.make_distiller(config, student_spec(config))
    assert [module.method for module in combined.methods] == list(METHODS)
    assert set(config.distill) == {*METHODS, "method", "warmup", "max_share", "min_confidence"}
    assert combined.methods[0].steps == config.student.steps
    config.distill.kd.fade = True
    objective = build.make_objective(config, student_spec(config), 10, lambda: ())
    first, last = (jax.device_get(objective.weights(step)) for step in (0, 9))
    assert first["hfd"] == last["hfd"] == config.distill.hfd.weight and first["kd"] > 0 == last["kd"], "kd fades"


@every_method
def test_gradient_reaches_the_student_and_not_the_teacher(name):
    terms, to_student, to_teacher, _ = run(name, make_pair())
    assert terms[name].dtype == np.float32 and all(key.startswith(name) for key in terms)
    assert np.isfinite(flat(to_student)).all() and np.abs(flat(to_student)).max() > 0
    assert not flat(to_teacher).any()
    assert (name in variables_of(name)["params"]) == (name not in WITHOUT_PARAMETERS)


@every_method
def test_invalid_pixels_do_not_matter(name, rng):
    """Adapters with batch normalisation use running statistics, since batch statistics include all positions."""
    train = name not in ("hfd", "cirkd")
    student, teacher, label, valid = make_pair()

    def noisy(outputs):
        where = {"A": ~cells(valid)[..., None], LOGITS: ~valid[..., None]}
        maps = {tap: np.where(where[tap], 100 * rng.normal(size=x.shape), x) for tap, x in outputs.maps().items()}
        return Outputs({"A": maps["A"].astype(np.float32)}, maps[LOGITS].astype(np.float32))

    other = np.where(valid, label, 1)
    before, after = (
        run(name, pair, train)[0]
        for pair in ((student, teacher, label, valid), (noisy(student), noisy(teacher), other, valid))
    )
    for key in before:
        # Masked terms may change the rounding of a sum.
        np.testing.assert_allclose(before[key], after[key], rtol=1e-6, atol=1e-7, err_msg=key)


@every_method
@pytest.mark.parametrize("case", ["bfloat16", "constant", "huge", "nothing valid"])
def test_losses_and_gradients_are_finite(name, case):
    pair = make_pair()
    if case == "nothing valid":
        pair = (*pair[:3], np.zeros_like(pair[3]))
    else:
        factor, offset = {"bfloat16": (1, 0), "constant": (0, 1), "huge": (1e4, 0)}[case]
        change = {"bfloat16": jnp.bfloat16}.get(case, jnp.float32)
        student, teacher = (jax.tree.map(lambda x: jnp.asarray(factor * x + offset, change), o) for o in pair[:2])
        pair = (student, teacher, *pair[2:])
    terms, to_student, *_ = run(name, pair)
    assert np.isfinite(flat(terms)).all() and np.isfinite(flat(to_student)).all()
    if case == "nothing valid":
        assert terms[name] == 0 and not flat(to_student).any()


@every_method
def test_unlabelled_pairs_teach_or_contribute_nothing(name):
    student, teacher, label, valid = make_pair()
    terms, to_student, *_ = run(name, (student, teacher, np.full_like(label, IGNORE_LABEL), valid))
    assert np.isfinite(flat(to_student)).all()
    assert (terms[name] > 0) == (name not in NEEDS_LABELS) == (np.abs(flat(to_student)).max() > 0)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("mgd", "cirkd")])
def test_a_duplicated_batch_has_the_same_loss(name):
    """Not for MGD and CIRKD, which draw random numbers per sample; the next test covers the pairs of CIRKD."""
    once = make_pair()
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), once)
    # Duplication leaves batch statistics, variances and Dice unchanged.
    assert run(name, twice)[0][name] == pytest.approx(run(name, once)[0][name], rel=1e-4)


def test_duplicated_images_have_the_same_divergence(rng):
    a, b = (length_one(rng.normal(size=(2, 5, 4))).astype(np.float32) for _ in range(2))
    seen = rng.random((2, 5)) < 0.7
    twice = [np.concatenate([x, x]) for x in (a, b, seen)]
    one, other = cirkd.batch_divergence(a, b, seen, 0.1), cirkd.batch_divergence(*twice, 0.1)
    assert float(one) == pytest.approx(float(other), rel=1e-5)


def test_the_student_is_resized_to_the_grid_of_the_teacher(rng):
    """Resizes a student's feature of half the resolution; invalid positions do not affect valid ones."""
    student, teacher, label, valid = make_pair()
    x = rng.normal(size=(2, 2, 2, 3)).astype(np.float32)
    coarse = with_feature(student, x)
    found = module("attention").apply({}, coarse, teacher, label, valid)["attention"]
    valid_2 = valid.reshape(-1, 2, 4, 2, 4).mean((2, 4)) >= 0.5
    fine = with_feature(student, resized(x, valid_2, (4, 4)))
    assert float(found) == pytest.approx(loss_of("attention", fine, teacher, label, valid), rel=1e-5)
    everywhere = np.ones((2, 2, 2), bool)
    np.testing.assert_allclose(resized(x, everywhere, (4, 4)), jax.image.resize(x, (2, 4, 4, 3), "bilinear"), atol=1e-5)
    x[:, 0, 0] = 1e6
    everywhere[:, 0, 0] = False
    assert np.abs(resized(x, everywhere, (4, 4))).max() < 10


def test_nodes_cover_grids_not_divisible_by_the_cell(rng):
    x, mask = rng.normal(size=(1, 3, 5, 2)).astype(np.float32), np.ones((1, 3, 5), bool)
    mask[0, 2, 4] = False
    found, seen = nodes(x, mask, 2)  # cells of 3 x 3
    np.testing.assert_allclose(found[0, 0], x[0, :, :3].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(found[0, 1], x[0, :, 3:][mask[0, :, 3:]].mean(0), rtol=1e-5)
    assert seen.tolist() == [[True, True]]


def test_the_teacher_is_trusted_where_it_is_sure_of_the_label_or_of_any_class():
    logits = jnp.log(jnp.array([[[[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]]]))
    label = jnp.array([[[0, 1, IGNORE_LABEL, IGNORE_LABEL]]])
    assert trusted(logits, label, 0.7).tolist() == [[[True, False, False, True]]]
