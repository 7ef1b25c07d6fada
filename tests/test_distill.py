"""Distillation methods: the published formulas in plain NumPy, what names each, METHOD's rules for all, the memory."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from hfd_jax import assembly, steps
from hfd_jax.checkpoint import Checkpoints
from hfd_jax.distill import cirkd, fakd
from hfd_jax.distill.interface import LOGITS, Outputs
from hfd_jax.distill.methods import METHODS, Combined
from hfd_jax.distill.relations import label_at, nodes, resized
from hfd_jax.labels import IGNORE_LABEL
from hfd_jax.models.layers import BatchNorm, upsample
from hfd_jax.parallel import make_parallel
from hfd_jax.state import init_fn
from tests.test_steps import CLASSES, INPUTS, make_batch

KEY = jax.random.key(5)
# Small ones, of one tap: 4 x 4 positions of 8 x 8 pixels.
SMALL = {
    "hfd": {"taps": ("A",)},
    "kd": {"temperature": 2.0},
    "skd": {"nodes": 2},
    "cirkd": {"nodes": 2, "pixels": 6, "regions": 4, "contrasted_pixels": 9, "contrasted_regions": 9},
    "aicsd": {"temperature": 2.0},
}
LABELS_NEEDED = ("ifvd",)
LEARNS_NOTHING = ("kd", "attention", "cwd", "skd", "ifvd", "aicsd", "fakd")  # cwd: on logits


@functools.cache
def module(name, **options):
    return METHODS[name](**{**SMALL.get(name, {}), **options})


def make_pair(batch=2, channels=(3, 4), seed=0):
    """(student, teacher, label, valid): some cells not valid, one of them because of half of its pixels."""
    rng = np.random.default_rng(seed)

    def outputs(count):
        feature, logits = rng.normal(size=(batch, 4, 4, count)), rng.normal(size=(batch, 8, 8, 3))
        return Outputs({"A": feature.astype(np.float32)}, 2 * logits.astype(np.float32))

    student, teacher = (outputs(count) for count in channels)
    label = rng.integers(0, 3, (batch, 8, 8)).astype(np.int32)
    label[:, 6:] = IGNORE_LABEL
    valid = np.ones((batch, 8, 8), bool)
    valid[:, :2, :5] = False
    valid[0, 2, 2:4] = valid[0, 3, 2] = False
    return student, teacher, label, valid


def cells(valid):
    """[B, 4, 4]: half of the four pixels."""
    return valid.reshape(-1, 4, 2, 4, 2).sum((2, 4)) >= 2


@functools.cache
def variables_of(name, **options):
    return jax.device_get(jax.jit(Combined((module(name, **options),)).init)(jax.random.key(0), *make_pair()))


@functools.cache
def compiled(name, train=True):
    """(variables, student, teacher, label, valid) -> terms, gradients in student and in teacher, what it has changed."""
    method = module(name)

    def loss(student, teacher, variables, label, valid):
        own = {collection: tree[name] for collection, tree in variables.items() if name in tree}
        mutable = ["batch_stats", "memory"] if train else []
        found = method.apply(own, student, teacher, label, valid, train=train, mutable=mutable, rngs={"noise": KEY})
        return found[0][name], found

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))

    def call(variables, student, teacher, label, valid):
        (_, (terms, changed)), gradients = gradient(student, teacher, variables, label, valid)
        return jax.device_get((terms, *gradients, changed))

    return call


def run(name, pair, train=True):
    return compiled(name, train)(variables_of(name), *pair)


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)])


# Formulas, for the student's feature of 4 x 4 x 3 and the teacher's of 4 x 4 x 4.


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def kl(p, q, axis=-1):
    return (p * np.log(p / q)).sum(axis)


def length_one(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def convolved(x, kernel):
    """SAME 3x3 or 1x1 convolution of [B, h, w, C] with [k, k, C, D]."""
    pad = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    h, w = x.shape[1:3]
    return sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i, j in np.ndindex(kernel.shape[:2]))


def expected_kd(student, teacher, label, valid, params):
    return 4 * kl(softmax(teacher.logits / 2), softmax(student.logits / 2))[valid].mean()


def expected_fitnet(student, teacher, label, valid, params):
    hint = student.features["A"] @ params["regressor_A"]["kernel"][0, 0] + params["regressor_A"]["bias"]
    return ((hint - teacher.features["A"]) ** 2)[cells(valid)].mean()


def expected_attention(student, teacher, label, valid, params):
    """With the paper's maps of norm 1, whose squares are smaller by the number of positions."""
    squares = []
    for s, t, mask in zip(student.features["A"], teacher.features["A"], cells(valid), strict=True):
        maps = [(x[mask] ** 2).sum(-1) for x in (s, t)]
        maps = [q / np.linalg.norm(q) for q in maps]
        squares += list(len(maps[0]) * (maps[0] - maps[1]) ** 2)
    return np.mean(squares)


def expected_cwd(student, teacher, label, valid, params):
    return channel_divergence(student.logits, teacher.logits, valid)


def channel_divergence(student, teacher, mask):
    each = [kl(softmax(t[m] / 4, 0), softmax(s[m] / 4, 0), 0) for s, t, m in zip(student, teacher, mask, strict=True)]
    return 16 * np.mean(each)


def expected_skd(student, teacher, label, valid, params):
    """Four nodes, each the mean of the valid ones among 2 x 2 positions."""
    each = []
    for s, t, mask in zip(student.features["A"], teacher.features["A"], cells(valid), strict=True):
        squares = [(slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2)) for i, j in np.ndindex(2, 2)]
        squares = [place for place in squares if mask[place].any()]
        a, b = (length_one(np.stack([x[place][mask[place]].mean(0) for place in squares])) for x in (s, t))
        each += list(((a @ a.T - b @ b.T) ** 2).ravel())
    return np.mean(each)


def expected_ifvd(student, teacher, label, valid, params):
    classes = np.where(valid, label, IGNORE_LABEL)[:, 1::2, 1::2]
    squares = []
    for s, t, mask, own in zip(student.features["A"], teacher.features["A"], cells(valid), classes, strict=True):
        for k in range(3):
            of_class = mask & (own == k)
            cosines = [
                (length_one(x[of_class]) * length_one(x[of_class].mean(0))).sum(-1) for x in (s, t) if of_class.any()
            ]
            squares += list((cosines[0] - cosines[1]) ** 2) if cosines else []
    return np.mean(squares)


def expected_nfd(student, teacher, label, valid, params):
    squares = []
    x = student.features["A"] @ params["projection_A"]["kernel"][0, 0]
    for s, t, mask in zip(x, teacher.features["A"], cells(valid), strict=True):
        a, b = ((y[mask] - y[mask].mean(0)) / np.sqrt(y[mask].var(0) + 1e-6) for y in (s, t))
        squares.append((a - b) ** 2)
    return np.concatenate(squares).mean()


def expected_aicsd(student, teacher, label, valid, params):
    each = []
    for s, t, mask in zip(student.logits, teacher.logits, valid, strict=True):
        a, b = (
            np.array([[kl(p[:, i], p[:, j]) for j in range(3)] for i in range(3)])
            for p in (softmax(x[mask] / 2, 0) for x in (s, t))
        )
        each.append((a - b) ** 2)
    return np.mean(each)


def expected_fakd(student, teacher, label, valid, params):
    group, bound = teacher.logits.argmax(-1), []
    for k in range(3):
        z, t = (x[valid & (group == k)] for x in (student.logits, teacher.logits))
        variance = (z[:, :, None] - z[:, None, :]).var(0)
        p = softmax(t)
        # 0.25 = strength / 2
        scores = z[:, :, None] - z[:, None, :] + 0.25 * variance
        bound.append((p * (np.log(p) + np.log(np.exp(scores).sum(1)))).sum(-1))
    return np.concatenate(bound).mean()


def expected_disoptnet(student, teacher, label, valid, params):
    mask = cells(valid)

    def block(x, name):
        return np.maximum(convolved(x, params[f"{name}_conv"]["kernel"]) / np.sqrt(1 + 1e-5), 0)

    def classified(x, name):
        logits = x @ params[f"{name}_classifier"]["kernel"][0, 0] + params[f"{name}_classifier"]["bias"]
        return np.asarray(jax.image.resize(logits, (2, 8, 8, 3), "bilinear"))

    def segmentation(logits, truth):
        known = truth != IGNORE_LABEL
        p, truth = softmax(logits)[known], np.eye(3)[truth[known]]
        dice = 2 * (p * truth).sum(0) / (p.sum(0) + truth.sum(0))
        return -np.log((p * truth).sum(-1)).mean() + 1 - dice.mean()

    x = student.features["A"] * mask[..., None]
    optical = block(block(x, "branch_1"), "branch_2")
    logits = classified(optical, "optical")
    fused = classified(block(np.concatenate([x, optical], -1), "fusion"), "fused")
    feature = ((optical - teacher.features["A"]) ** 2)[mask].mean()
    hard = segmentation(logits, np.where(valid, teacher.logits.argmax(-1), IGNORE_LABEL))
    soft = kl(softmax(teacher.logits), softmax(logits))[valid].mean()
    return feature + hard + 8 * soft + segmentation(fused, np.where(valid, label, IGNORE_LABEL))


@pytest.mark.parametrize(
    "name",
    ["kd", "fitnet", "attention", "cwd", "skd", "ifvd", "nfd", "aicsd", "fakd", "disoptnet"],
)
def test_the_loss_is_the_published_formula(name):
    pair = make_pair()
    terms = run(name, pair, train=False)[0]
    params = jax.device_get(variables_of(name)["params"].get(name, {}))
    # float32 against float64, with an eps of 1e-6 on norms of about 1 and on a sum of some ten probabilities.
    assert float(terms[name]) == pytest.approx(globals()[f"expected_{name}"](*pair, params), rel=1e-4)


def test_cwd_compares_features_too():
    student, teacher, label, valid = make_pair()
    method = module("cwd", taps=("A", LOGITS))
    terms, variables = method.init_with_output(KEY, student, teacher, label, valid)
    x = student.features["A"] @ np.asarray(variables["params"]["projection_A"]["kernel"][0, 0])
    expected = channel_divergence(x, teacher.features["A"], cells(valid))
    assert float(terms["cwd_A"]) == pytest.approx(expected, rel=1e-4)
    assert float(terms["cwd"]) == pytest.approx(float(terms["cwd_A"] + terms["cwd_logits"]) / 2, rel=1e-6)


def test_mgd_is_its_formula_where_nothing_is_masked_and_generates_from_what_is_kept():
    student, teacher, label, valid = make_pair()
    mask, none_masked = cells(valid), module("mgd", masked=0.0)
    variables = none_masked.init({"params": KEY, "noise": KEY}, student, teacher, label, valid)
    params = jax.device_get(variables["params"])
    x = (student.features["A"] @ params["projection_A"]["kernel"][0, 0]) * mask[..., None]
    for number in (1, 2):
        layer = params[f"generator_A_{number}"]
        x = convolved(np.maximum(x, 0) if number == 2 else x, layer["kernel"]) + layer["bias"]
    expected = ((x - teacher.features["A"]) ** 2)[mask].mean()

    @functools.partial(jax.jit, static_argnums=0)
    def loss(method, key, feature=student.features["A"]):
        pair = Outputs({"A": feature}, student.logits), teacher, label, valid
        return method.apply(variables, *pair, rngs={"noise": key})["mgd"]

    assert float(loss(none_masked, KEY)) == pytest.approx(expected, rel=1e-4)
    most = module("mgd", masked=0.75)
    assert loss(most, KEY) == loss(most, KEY) != loss(most, jax.random.key(6)), "the key decides what is masked"
    gradient = jax.grad(lambda x: loss(most, KEY, x))(student.features["A"])
    used = np.abs(gradient).max(-1) > 0
    assert 0 < used.sum() < 0.6 * mask.sum() and not used[~mask].any()


def test_cirkd_compares_similarities_across_images_and_with_its_queues(rng):
    a, b = (length_one(rng.normal(size=(3, 5, count))).astype(np.float32) for count in (4, 6))
    seen = rng.random((3, 5)) < 0.7
    seen[2] = False  # an image without anything valid is in no pair
    expected = []
    for i, j in np.ndindex(2, 2):
        p, q = (softmax((x[i][seen[i]] @ x[j][seen[j]].T) / 0.1) for x in (b, a))
        expected += list(kl(p, q))
    assert float(cirkd.batch_divergence(a, b, seen, 0.1)) == pytest.approx(np.mean(expected), rel=1e-4)

    queue, filled = length_one(rng.normal(size=(7, 4))).astype(np.float32), np.arange(7) < 5
    other = length_one(rng.normal(size=(3, 5, 4))).astype(np.float32)
    p, q = (softmax(x[seen] @ queue[:5].T / 0.1) for x in (other, a))
    found = cirkd.queue_divergence(a, other, seen, queue, filled, 0.1)
    assert float(found) == pytest.approx(kl(p, q).mean(), rel=1e-4)
    assert float(cirkd.queue_divergence(a, other, seen, queue, filled & False, 0.1)) == 0


def test_a_queue_is_a_ring():
    queue, count = jnp.zeros((4, 1)), 0
    for entries, flags, content, total in (
        ([1, 2, 3], [True, False, True], [1, 3, 0, 0], 2),
        ([4, 5, 6], [True, True, True], [6, 3, 4, 5], 5),
        ([7, 8, 9, 10, 11, 12], [True] * 6, [10, 11, 12, 9], 7),  # 5 + 6 = 11, kept below 8 with the same remainder
    ):
        queue, count = cirkd.push(queue, count, np.array(entries, np.float32)[:, None], np.array(flags))
        assert np.asarray(queue)[:, 0].tolist() == content and int(count) == total


def test_the_queues_hold_the_teacher_of_labelled_positions_alone():
    student, teacher, label, valid = make_pair()
    label[1] = IGNORE_LABEL
    label[0, :, :] = np.where(label[0] == 2, 1, label[0])
    memory = run("cirkd", (student, teacher, label, valid))[3]["memory"]
    grid = np.asarray(label_at(label, valid, (4, 4)))[0]
    embeddings = length_one(teacher.features["A"][0])
    for k in range(3):
        of_class = embeddings[grid == k]
        assert memory["regions_count"][k] == bool(len(of_class)), "one mean per image and class"
        assert memory["pixels_count"][k] == (
            0 if k == 2 else len(of_class) if len(of_class) < 6 else memory["pixels_count"][k]
        )
        for entry in memory["pixels"][k][: min(6, memory["pixels_count"][k])]:
            assert np.abs(of_class - entry).max(-1).min() < 1e-5
        if len(of_class):
            np.testing.assert_allclose(memory["regions"][k, 0], length_one(of_class.mean(0)), atol=1e-5)


# What names a method.


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


def test_attention_does_not_feel_a_positive_factor():
    student, *others = make_pair()
    factors = np.array([3.0, 7.0])[:, None, None, None]
    scaled = with_feature(student, factors * student.features["A"])
    assert loss_of("attention", scaled, *others) == pytest.approx(loss_of("attention", student, *others), rel=1e-4)


def test_cwd_does_not_feel_an_offset_of_a_channel():
    student, *others = make_pair()
    shifted = with_logits(student, student.logits + np.array([5.0, -3.0, 1.0]))
    assert loss_of("cwd", shifted, *others) == pytest.approx(loss_of("cwd", student, *others), rel=1e-4)
    assert loss_of("kd", shifted, *others) != pytest.approx(loss_of("kd", student, *others), rel=0.1)


@pytest.mark.parametrize("name", ["skd", "ifvd"])
def test_relations_do_not_feel_a_rotation_of_channels(name, rng):
    student, *others = make_pair()
    turned = with_feature(student, student.features["A"] @ rotation(3, rng))
    assert loss_of(name, turned, *others) == pytest.approx(loss_of(name, student, *others), rel=1e-4)


def test_nfd_does_not_feel_scale_and_offset_of_a_channel():
    student, teacher, label, valid = make_pair()
    changed = with_feature(teacher, teacher.features["A"] * np.array([2.0, 5.0, 3.0, 9.0]) + np.arange(4))
    before, after = (loss_of("nfd", student, other, label, valid) for other in (teacher, changed))
    assert after == pytest.approx(before, rel=1e-4)
    before, after = (loss_of("fitnet", student, other, label, valid) for other in (teacher, changed))
    assert after > 2 * before


def test_aicsd_does_not_feel_offsets_of_classes():
    student, *others = make_pair()
    shifted = with_logits(student, student.logits + np.array([5.0, -3.0, 1.0]))
    assert loss_of("aicsd", shifted, *others) == pytest.approx(loss_of("aicsd", student, *others), rel=1e-4)


def test_fakd_bounds_what_random_features_give(rng):
    """Gaussian logits with the covariance of their class, 4000 draws: their mean divergence is 3 % exact."""
    student, teacher, label, valid = make_pair()
    plain = module("fakd", strength=0.0).apply({}, student, teacher, label, valid)["fakd"]
    expected = kl(softmax(teacher.logits), softmax(student.logits))[valid].mean()
    assert float(plain) == pytest.approx(expected, rel=1e-4), "no augmentation: logit distillation"
    group, draws = teacher.logits.argmax(-1), []
    for k in range(3):
        z, t = (x[valid & (group == k)] for x in (student.logits, teacher.logits))
        noise = rng.multivariate_normal(np.zeros(3), 0.5 * np.cov(z.T, bias=True), size=(4000, len(z)))
        draws.append(kl(softmax(t), softmax(z + noise)).mean(0))
    sampled = np.concatenate(draws).mean()
    assert expected < sampled < loss_of("fakd", student, teacher, label, valid)
    variances = fakd.difference_variances(jnp.asarray(student.logits), group, valid)
    np.testing.assert_allclose(variances, np.swapaxes(variances, 1, 2), atol=1e-4)


def test_disoptnet_learns_labels_through_the_student_but_not_from_unlabelled_pairs():
    student, teacher, label, valid = make_pair()
    unlabelled = np.full_like(label, IGNORE_LABEL)
    labelled, without = (run("disoptnet", (student, teacher, x, valid), train=False)[0] for x in (label, unlabelled))
    assert labelled["disoptnet_fused"] > 0 == without["disoptnet_fused"]
    for part in ("feature", "hard", "soft"):
        assert labelled[f"disoptnet_{part}"] == without[f"disoptnet_{part}"] > 0


# Rules that every method obeys.

every_method = pytest.mark.parametrize("name", list(METHODS))


def test_the_config_has_every_method_and_its_modules_attributes():
    config = default.get_config()
    config.distill.method = tuple(METHODS)
    combined = assembly.make_distiller(config, assembly.student_run(config))
    assert [module.method for module in combined.methods] == list(METHODS)
    assert set(config.distill) == {*METHODS, "method", "warmup", "cache"}
    objective = assembly.make_objective(config, assembly.student_run(config), 10, lambda: ())
    first, last = (jax.device_get(objective.weights(step)) for step in (0, 9))
    assert first["hfd"] == last["hfd"] == 10 and first["aicsd"] > 0 == last["aicsd"], "aicsd fades"


@every_method
def test_gradient_reaches_the_student_and_not_the_teacher(name):
    terms, to_student, to_teacher, _ = run(name, make_pair())
    assert terms[name].dtype == np.float32 and all(key.startswith(name) for key in terms)
    assert np.isfinite(flat(to_student)).all() and np.abs(flat(to_student)).max() > 0
    assert not flat(to_teacher).any()
    assert (name in variables_of(name)["params"]) == (name not in LEARNS_NOTHING)


@every_method
def test_what_is_not_valid_changes_nothing(name, rng):
    """Of adapters with batch normalisation with its running statistics: a batch's are over all of its positions."""
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
        # An exact 0 * x in one, a sum without it in the other.
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
    assert (terms[name] > 0) == (name not in LABELS_NEEDED) == (np.abs(flat(to_student)).max() > 0)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("mgd", "cirkd")])
def test_a_batch_of_copies_has_the_loss_of_one(name):
    """Not of MGD and CIRKD, which draw something else for every sample; the latter's pairs are copied below."""
    once = make_pair()
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), once)
    # Batch statistics are those of one; variances and Dice are of the whole batch.
    assert run(name, twice)[0][name] == pytest.approx(run(name, once)[0][name], rel=1e-4)


def test_pairs_of_copies_have_the_divergence_of_one(rng):
    a, b = (length_one(rng.normal(size=(2, 5, 4))).astype(np.float32) for _ in range(2))
    seen = rng.random((2, 5)) < 0.7
    twice = [np.concatenate([x, x]) for x in (a, b, seen)]
    one, other = cirkd.batch_divergence(a, b, seen, 0.1), cirkd.batch_divergence(*twice, 0.1)
    assert float(one) == pytest.approx(float(other), rel=1e-5)


def test_another_grid_is_brought_to_the_teachers(rng):
    """A student with half or twice as many positions; what is not valid does not bleed."""
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


def test_nodes_cover_grids_that_do_not_divide(rng):
    x, mask = rng.normal(size=(1, 3, 5, 2)).astype(np.float32), np.ones((1, 3, 5), bool)
    mask[0, 2, 4] = False
    found, seen = nodes(x, mask, 2)  # cells of 3 x 3
    np.testing.assert_allclose(found[0, 0], x[0, :, :3].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(found[0, 1], x[0, :, 3:][mask[0, :, 3:]].mean(0), rtol=1e-5)
    assert seen.tolist() == [[True, True]]


# All methods in the student's step.


class Tiny(nn.Module):
    """A network in the shape of `Segmenter` that compiles in a second."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (4, 4), strides=4, use_bias=False)(x)
        x = nn.relu(BatchNorm(train, axis_name=self.axis_name)(x))
        return upsample(nn.Conv(CLASSES, (1, 1))(x), (32, 32)), {"A": x}


def make_setup(axis_name=None):
    options = {**SMALL, "cirkd": {"pixels": 64, "regions": 32}}
    modules = tuple(METHODS[name](axis_name=axis_name, **options.get(name, {})) for name in METHODS)
    return steps.Setup(
        model=Tiny(axis_name),
        sensor="sar",
        # Not Adam, whose steps hardly depend on the gradient's size.
        tx=optax.sgd(1e-2),
        inputs=INPUTS,
        objective=steps.Objective(distil=tuple((name, 0.1) for name in METHODS)),
        teacher=Tiny(),
        distiller=Combined(modules),
        axis_name=axis_name,
    )


def prepared(kind, devices):
    """(parallel, compiled step, state, teacher)."""
    parallel = make_parallel(kind, jax.devices()[:devices])
    setup = make_setup(parallel.axis_name)
    plain = setup.model.clone(axis_name=None)
    initialise = init_fn(plain, setup.tx, 2, setup.distiller.clone(axis_name=None), (setup.teacher, 3), 32)
    state = parallel.init(initialise, jax.random.key(0))
    teacher = jax.jit(setup.teacher.init)(jax.random.key(9), jnp.zeros((1, 32, 32, 3)))
    return parallel, parallel.train_step(steps.train_step(setup)), state, parallel.replicate(jax.device_get(teacher))


def batch_of(number):
    """Four images, of which the first and the last are valid in part: unequal shares on two devices."""
    batch = make_batch(number, size=4, edge=32)
    batch["sar_valid"][:], batch["eo_valid"][:] = True, True
    batch["sar_valid"][0, :24] = batch["eo_valid"][3, :, :12] = False
    return batch


@pytest.fixture(scope="module")
def trained():
    """Two jitted steps on one device: (what `prepared` returns, state after each, metrics of each)."""
    parallel, step, state, teacher = prepared("jit", 1)
    states, rows = [], []
    for number in range(2):
        state, metrics = step(state, teacher, parallel.shard(batch_of(number)))
        states.append(jax.device_get(state))
        rows.append(jax.device_get(metrics))
    return (parallel, step, teacher), states, rows


def test_methods_train_together_and_are_logged(trained):
    _, states, rows = trained
    names = {*METHODS, "hfd_A", "cirkd_pixels", "cirkd_regions", "cirkd_batch", "disoptnet_fused", "share_cirkd"}
    assert names <= set(rows[0]) and all(np.isfinite(list(row.values())).all() for row in rows)
    learning = set(METHODS) - set(LEARNS_NOTHING) - {"nfd"}  # whose channels are equal here
    assert set(states[0].params["distiller"]) == learning and set(states[0].memory) == {"cirkd"}
    counts = [state.memory["cirkd"]["regions_count"].tolist() for state in states]
    assert counts == [[4] * CLASSES, [8] * CLASSES], "a class mean of every image"


def test_two_devices_train_like_one_under_pmap(trained):
    """Draws and memory are the same; numbers up to the order of float32 sums, of which AICSD squares a difference."""
    parallel, step, state, teacher = prepared("pmap", 2)
    for number, row in enumerate(trained[2]):
        state, metrics = step(state, teacher, parallel.shard(batch_of(number)))
        found = jax.device_get(metrics)
        assert row.keys() == found.keys()
        for name in row:
            np.testing.assert_allclose(found[name], row[name], rtol=1e-3, atol=1e-6, err_msg=name)
    copies = [jax.tree.map(lambda x, k=k: np.asarray(x.addressable_data(k)[0]), state) for k in range(2)]
    paths = jax.tree.leaves_with_path(trained[1][-1])
    for (path, alone), one, other in zip(paths, *map(jax.tree.leaves, copies), strict=True):
        np.testing.assert_array_equal(one, other, err_msg="devices agree")
        np.testing.assert_allclose(one, alone, rtol=1e-4, atol=1e-5, err_msg=str(path))


def test_a_skipped_step_leaves_the_memory(trained):
    (parallel, step, teacher), states, _ = trained
    bad = batch_of(3)
    bad["sar"][1, 20, 20, 0] = np.nan
    state, metrics = step(parallel.replicate(states[0]), teacher, parallel.shard(bad))
    assert int(metrics["bad_steps"]) == 1
    for one, other in zip(jax.tree.leaves(states[0].memory), jax.tree.leaves(state.memory), strict=True):
        np.testing.assert_array_equal(one, other)


def test_memory_survives_a_checkpoint_and_the_next_step_is_bit_equal(trained, tmp_path):
    (parallel, step, teacher), states, rows = trained
    state = parallel.replicate(states[0])
    checkpoints = Checkpoints(str(tmp_path / "student"))
    checkpoints.save(1, parallel.single(state), {})
    checkpoints.wait()
    restored, _ = checkpoints.restore_latest(parallel.abstract(state))
    checkpoints.close()
    state, metrics = step(parallel.placed(restored), teacher, parallel.shard(batch_of(1)))
    assert jax.device_get(metrics) == rows[1]
    for one, other in zip(jax.tree.leaves(states[1]), jax.tree.leaves(jax.device_get(state)), strict=True):
        np.testing.assert_array_equal(one, other)
