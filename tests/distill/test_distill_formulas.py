"""Compares distillation methods with their formulas in NumPy (published, or as each file states); tests the queues."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.distill import cirkd
from hfd_jax.distill.base import LOGITS, Outputs
from hfd_jax.distill.relations import label_at
from tests.pairs import (
    KEY,
    cells,
    kl,
    length_one,
    make_pair,
    module,
    run,
    softmax,
    variables_of,
)

# Formulas, for a student's feature of 4 x 4 x 3 and a teacher's of 4 x 4 x 4.


def convolved(x, kernel):
    """Convolves [B, h, w, C] with a 3x3 or 1x1 kernel [k, k, C, D] and SAME padding."""
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
    """Uses the paper's maps of norm 1, whose squares are smaller by a factor of the number of positions."""
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
    """Uses four nodes, each the mean over the valid ones of 2 x 2 positions."""
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
        each.append((length_one(a) - length_one(b)) ** 2)
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
    # float32 against float64, with an eps of 1e-6 on norms of about 1 and on a sum of about ten probabilities.
    assert float(terms[name]) == pytest.approx(globals()[f"expected_{name}"](*pair, params), rel=1e-4)


def test_cwd_compares_features_too():
    student, teacher, label, valid = make_pair()
    method = module("cwd", taps=("A", LOGITS))
    terms, variables = method.init_with_output(KEY, student, teacher, label, valid)
    x = student.features["A"] @ np.asarray(variables["params"]["projection_A"]["kernel"][0, 0])
    expected = channel_divergence(x, teacher.features["A"], cells(valid))
    assert float(terms["cwd_A"]) == pytest.approx(expected, rel=1e-4)
    assert float(terms["cwd"]) == pytest.approx(float(terms["cwd_A"] + terms["cwd_logits"]) / 2, rel=1e-6)


def test_mgd_is_its_formula_without_masking_and_uses_only_unmasked_positions():
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
    masking = module("mgd", masked=0.75)
    assert loss(masking, KEY) == loss(masking, KEY) != loss(masking, jax.random.key(6)), "the key determines the mask"
    gradient = jax.grad(lambda x: loss(masking, KEY, x))(student.features["A"])
    used = np.abs(gradient).max(-1) > 0
    assert 0 < used.sum() < 0.6 * mask.sum() and not used[~mask].any()


def test_cirkd_compares_similarities_across_images_and_with_its_queues(rng):
    a, b = (length_one(rng.normal(size=(3, 5, count))).astype(np.float32) for count in (4, 6))
    seen = rng.random((3, 5)) < 0.7
    seen[2] = False  # an image without valid nodes is left out
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


def test_cirkd_weights_its_parts_and_compares_with_queues_that_include_the_batch():
    """Draws all entries of the queues, so that the result does not depend on the draw."""
    student, teacher, label, valid = make_pair()
    options = {"nodes": 4, "pixels": 64, "regions": 8, "contrasted_pixels": 10_000, "contrasted_regions": 10_000}
    method = module("cirkd", temperature=0.5, pixel_weight=0.25, region_weight=2.0, **options)
    inputs, rngs = (student, teacher, label, valid), {"noise": KEY}
    variables = jax.jit(method.init)({"params": KEY, **rngs}, *inputs)
    terms, changed = jax.jit(functools.partial(method.apply, mutable=["memory", "batch_stats"]))(
        variables, *inputs, rngs=rngs
    )
    parts = {name: float(terms[f"cirkd_{name}"]) for name in ("batch", "pixels", "regions")}
    assert float(terms["cirkd"]) == pytest.approx(
        parts["batch"] + 0.25 * parts["pixels"] + 2 * parts["regions"], rel=1e-5
    )

    kernels = variables["params"]["projection"]
    hidden = student.features["A"] @ kernels["Conv_0"]["kernel"][0, 0]
    hidden = (hidden - hidden.mean((0, 1, 2))) / np.sqrt(hidden.var((0, 1, 2)) + 1e-5)
    headed = np.maximum(hidden, 0) @ kernels["Conv_1"]["kernel"][0, 0]
    mask = cells(valid)
    # Each position is a node.
    of_student, of_teacher = (length_one(np.asarray(x)[mask]) for x in (headed, teacher.features["A"]))
    for name in ("pixels", "regions"):
        queue, count = changed["memory"][name], changed["memory"][f"{name}_count"]
        assert int(np.sum(count)) > 0 and np.all(count <= queue.shape[1])
        entries = np.concatenate([of_class[:n] for of_class, n in zip(queue, count, strict=True)])
        p, q = (softmax(x @ entries.T / 0.5) for x in (of_teacher, of_student))
        assert parts[name] == pytest.approx(kl(p, q).mean(), rel=1e-3)


def test_a_queue_is_a_ring():
    queue, count = jnp.zeros((4, 1)), 0
    for entries, flags, content, total in (
        ([1, 2, 3], [True, False, True], [1, 3, 0, 0], 2),
        ([4, 5, 6], [True, True, True], [6, 3, 4, 5], 5),
        ([7, 8, 9, 10, 11, 12], [True] * 6, [10, 11, 12, 9], 7),  # 5 + 6 = 11, reduced below 8 with the same remainder
    ):
        queue, count = cirkd.push(queue, count, np.array(entries, np.float32)[:, None], np.array(flags))
        assert np.asarray(queue)[:, 0].tolist() == content and int(count) == total


def test_the_queues_contain_the_teachers_embeddings_of_labelled_positions_only():
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
