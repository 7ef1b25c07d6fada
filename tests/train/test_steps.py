"""The two training steps: the teacher contributes and stays unchanged; the number of devices does not matter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.parallel import make_parallel
from hfd_jax.data.augment import Augmentation
from hfd_jax.data.facts import BandStatistics
from hfd_jax.data.inputs import InputSpec
from hfd_jax.data.normalise import Normalisation
from hfd_jax.data.pipeline import Reading
from hfd_jax.distill.hfd import HFD
from hfd_jax.distill.kd import KD
from hfd_jax.distill.registry import Combined
from hfd_jax.evaluation import steps as evaluation_steps
from hfd_jax.evaluation.evaluator import Evaluator
from hfd_jax.models.hfdnet import HFDNet
from hfd_jax.train import steps
from hfd_jax.train.state import init_fn, student_from_teacher
from hfd_jax.train.steps import Objective, Setup

CLASSES = 3
INPUTS = InputSpec(
    sar=BandStatistics((-12.0,) * 2, (4.0,) * 2, (-20.0,) * 2, (-4.0,) * 2),
    eo=BandStatistics((100.0,) * 3, (50.0,) * 3, (0.0,) * 3, (255.0,) * 3),
    normalisation=Normalisation(),
    augmentation=Augmentation(flips=True, sar_gain_db=1.0, eo_gain=0.1),
    look_axis="x",
)


def make_batch(seed=0, size=8, edge=64):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (size, edge, edge)).astype(np.uint8)
    label[:, :4] = IGNORE_LABEL
    sar_valid, eo_valid = np.ones((2, size, edge, edge), bool)
    # Unequal shares of nodata: a mean of device means would differ from the mean of all pixels.
    sar_valid[: size // 2, :32] = False
    eo_valid[-1:, :, :32] = False
    return {
        "sar": rng.normal(-12, 4, (size, edge, edge, 2)).astype(np.float32),
        "eo": rng.integers(1, 255, (size, edge, edge, 3)).astype(np.uint8),
        "label": label,
        "sar_valid": sar_valid,
        "eo_valid": eo_valid,
        "index": np.arange(size, dtype=np.int32),
        "key": rng.integers(2**31, size=size, dtype=np.int32),
    }


def make_setup(sensor="sar", hfd=2.0, kd=0.5, **objective):
    weights = {name: weight for name, weight in (("hfd", hfd), ("kd", kd)) if weight}
    objective = Objective(**{"distil": tuple(weights.items()), "warmup_steps": 4, **objective})
    modules = {"hfd": HFD(taps=("C3", "C4", "A")), "kd": KD()}
    model = HFDNet(CLASSES, width=4)
    return Setup(
        model=model,
        sensor=sensor,
        tx=optax.adamw(1e-3),
        inputs=INPUTS,
        objective=objective,
        teacher=HFDNet(CLASSES, width=4),
        distiller=Combined(tuple(modules[name] for name in weights)) if weights else None,
    )


def make_state(setup):
    bands = 2 if setup.sensor == "sar" else 3
    return init_fn(setup.model, setup.tx, bands, setup.distiller, (setup.teacher, 3), 32)


def make_teacher():
    teacher = HFDNet(CLASSES, width=4)
    return teacher.init(jax.random.key(9), jnp.zeros((1, 32, 32, 3)))


@pytest.fixture(scope="module")
def trained():
    """Three student steps on one device: setup, states, metrics, teacher before and after."""
    return run_steps("jit", 1)


def run_steps(kind, devices, count=3):
    parallel = make_parallel(kind, jax.devices()[:devices])
    setup = make_setup()
    state = parallel.init(make_state(setup), jax.random.key(0))
    first = jax.device_get(parallel.local(state))
    teacher = parallel.replicate(jax.device_get(make_teacher()))
    step, metrics = parallel.train_step(steps.train_step(setup)), []
    for number in range(count):
        state, values = step(state, teacher, parallel.shard(make_batch(number)))
        metrics.append(jax.device_get(values))
    evaluate = parallel.eval_step(evaluation_steps.eval_step(setup.model, INPUTS, "sar"))
    counts = jax.device_get(evaluate(state.model_variables, parallel.shard(make_batch(7))))
    return first, jax.device_get(parallel.local(state)), metrics, jax.device_get(parallel.local(teacher)), counts


def test_the_student_learns_and_the_teacher_stays_bit_equal(trained):
    first, last, _, teacher, _ = trained
    assert int(last.step) == 3
    for before, after in (
        (first.params["model"], last.params["model"]),
        (first.params["distiller"], last.params["distiller"]),
    ):
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
        assert all(jax.tree.leaves(moved))
    for before, after in zip(jax.tree.leaves(make_teacher()), jax.tree.leaves(teacher), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_state_that_is_saved_holds_no_teacher(trained):
    _, last, _, _, _ = trained
    assert set(last.params) == {"model", "distiller"}
    assert set(last.model_variables["params"]) == {"encoder", "alignment", "detail", "decoder", "classifier"}
    assert set(last.params["distiller"]) == {"hfd"}, "kd learns nothing of its own"
    assert set(last.params["distiller"]["hfd"]) == {
        f"{part}_{tap}" for part in ("adapter", "log_variance") for tap in ("C3", "C4", "A")
    }


def test_every_term_is_logged_with_its_share(trained):
    metrics = trained[2][-1]
    terms = ("ce", "dice", "hfd", "kd")
    assert float(metrics["loss"]) == pytest.approx(sum(float(metrics[t]) for t in terms), rel=1e-5)
    assert sum(float(metrics[f"share_{t}"]) for t in terms) == pytest.approx(1, rel=1e-5)
    for t in terms:
        assert float(metrics[f"share_{t}"]) == pytest.approx(float(metrics[t] / metrics["loss"]), rel=1e-5)
    # The weight is 2, fully ramped up from step 4 on; here it is step 3 of 4. The first step has log-variances of 0.
    first = trained[2][0]
    mean = np.average([first[f"hfd_{tap}"] for tap in ("C3", "C4", "A")], weights=(1, 1, 4))
    assert float(first["hfd"]) == pytest.approx(2.0 * 0.25 * mean / 2, rel=1e-5)
    assert 0 < metrics["gradient_share"] < 1


def test_pixels_where_the_teacher_is_not_confident_do_not_teach():
    metrics = metrics_of(make_setup(kd=0, min_confidence=1.1), make_batch())
    assert metrics["hfd"] == 0 and metrics["gradient_share"] == 0, "no probability is above 1"
    assert metrics["ce"] > 0, "labels teach everywhere"


def test_the_share_of_the_teacher_in_the_gradient_is_limited_and_labels_are_not_scaled():
    free, limited = (metrics_of(make_setup(hfd=200.0, max_share=share), make_batch()) for share in (1.0, 0.2))
    assert free["gradient_share"] > 0.5
    assert float(limited["gradient_share"]) == pytest.approx(0.2, rel=1e-4)
    assert limited["ce"] == free["ce"] and limited["dice"] == free["dice"]
    # One factor for all distillation, which is what brings the share to its limit: s / (1 - s) against the free one.
    factor = (0.2 / 0.8) / (float(free["gradient_share"]) / (1 - float(free["gradient_share"])))
    for name in ("hfd", "kd"):
        assert float(limited[name]) == pytest.approx(factor * float(free[name]), rel=1e-3)


@pytest.mark.parametrize(("kind", "devices"), [("jit", 8), ("pmap", 8)])
def test_eight_devices_give_the_numbers_of_one(trained, kind, devices):
    """Losses, metrics and statistics, up to the order of float32 sums.

    (Without C5, which has 2 x 2 positions here: standardising over four numbers amplifies rounding a thousandfold.)
    """
    _, last, metrics, _, counts = run_steps(kind, devices)
    for one, many in zip(trained[2], metrics, strict=True):
        assert one.keys() == many.keys()
        for name in one:
            np.testing.assert_allclose(one[name], many[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(trained[1].batch_stats), jax.tree.leaves(last.batch_stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    # A few near-ties may be classified differently.
    assert np.abs(counts["confusion"] - trained[4]["confusion"]).sum() <= 0.002 * counts["confusion"].sum()
    assert counts["ignored"] == trained[4]["ignored"]
    assert counts["confusion"].sum() + counts["ignored"] == 8 * 64 * 64


def gradients(setup, state, teacher, batch):
    """Gradients of the student's loss with respect to (student, teacher)."""

    def loss(params, teacher):
        _, metrics = steps.student_step(setup, state.replace(params=params), teacher, batch)
        return metrics["loss"]

    return jax.jit(jax.grad(loss, (0, 1)))(state.params, teacher)


def test_gradient_into_the_teacher_is_exactly_zero():
    # Plain SGD: this check differentiates through the update.
    setup = dataclasses.replace(make_setup(ce=0.0, dice=0.0, kd=1.0), tx=optax.sgd(0.0))
    state = make_state(setup)(jax.random.key(0))
    to_student, to_teacher = gradients(setup, state, make_teacher(), make_batch())
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(to_teacher))
    moved = [np.abs(np.asarray(g)).max() > 0 for g in jax.tree.leaves(to_student["model"]["encoder"])]
    assert all(moved), "distillation alone reaches every parameter of the encoder"


def metrics_of(setup, batch, state=None):
    state = state or make_state(setup)(jax.random.key(0))
    return jax.device_get(jax.jit(lambda b: steps.train_step(setup)(state, make_teacher(), b)[1])(batch))


def test_invalid_pixels_have_no_influence():
    setup, batch = make_setup(), make_batch()
    other = {k: v.copy() for k, v in batch.items()}
    other["sar"][~batch["sar_valid"]] = np.nan
    other["eo"][~batch["eo_valid"]] = 255
    other["label"][~batch["sar_valid"]] = 1
    one, two = metrics_of(setup, batch), metrics_of(setup, other)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_unlabelled_pairs_still_teach():
    setup, batch = make_setup(kd=0.0), make_batch()
    batch["label"][:] = IGNORE_LABEL
    metrics = metrics_of(setup, batch)
    assert metrics["ce"] == 0 and metrics["dice"] == 0 and metrics["hfd"] > 0
    assert metrics["grad_norm"] > 0 and np.isfinite(metrics["grad_norm"])


def test_teacher_step_reads_eo_and_its_own_mask():
    setup, batch = make_setup("eo", hfd=0.0, kd=0.0), make_batch()
    other = {k: v.copy() for k, v in batch.items()}
    other["sar"][:] = 0
    other["sar_valid"][:] = False
    one, two = metrics_of(setup, batch), metrics_of(setup, other)
    assert one == two
    other["eo"] = 255 - batch["eo"]
    assert metrics_of(setup, other)["loss"] != one["loss"]


def test_teacher_weights_fit_a_student_with_other_bands():
    teacher = jax.device_get(make_teacher())
    model = HFDNet(CLASSES, width=4)
    student = jax.device_get(model.init(jax.random.key(1), jnp.zeros((1, 32, 32, 2))))
    fitted = student_from_teacher(student, teacher, model.stems)
    for stem in (("encoder", "conv1"), ("detail", "stride1_0", "conv")):
        kernel, old = (flatten_dict(variables["params"])[(*stem, "kernel")] for variables in (fitted, teacher))
        assert kernel.shape[2] == 2
        np.testing.assert_allclose(kernel.sum(2), old.sum(2), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fitted["params"]["classifier"]["kernel"], teacher["params"]["classifier"]["kernel"])
    wide = jax.device_get(HFDNet(CLASSES, width=8).init(jax.random.key(1), jnp.zeros((1, 32, 32, 2))))
    with pytest.raises(ValueError, match=r"batch_stats/.*: expected \(.*\), found \("):
        student_from_teacher(wide, teacher, model.stems)


@pytest.mark.parametrize(("kind", "devices"), [("jit", 1), ("jit", 8), ("pmap", 8)])
def test_a_step_that_is_not_finite_is_skipped_on_every_device_and_counted(kind, devices):
    """A non-finite pixel on one device skips the step everywhere; training without that step ends in the same state."""
    parallel = make_parallel(kind, jax.devices()[:devices])
    setup = make_setup(warmup_steps=0)  # the ramp counts skipped steps as well
    teacher = parallel.replicate(jax.device_get(make_teacher()))
    step = parallel.train_step(steps.train_step(setup))

    def run(batches):
        state, rows = parallel.init(make_state(setup), jax.random.key(0)), []
        for batch in batches:
            state, metrics = step(state, teacher, parallel.shard(batch))
            rows.append(jax.device_get(metrics))
        copies = [jax.tree.map(lambda x, k=k: np.asarray(x.addressable_data(k)), state) for k in range(min(devices, 2))]
        return copies, rows

    bad = make_batch(1)
    bad["sar"][3, 40, 40, 0] = np.nan
    states, rows = run([make_batch(0), bad, bad, make_batch(0)])
    assert [(int(row["bad_steps"]), int(row["skipped"])) for row in rows] == [(0, 0), (1, 1), (2, 2), (0, 2)]
    assert not np.isfinite(rows[1]["hfd"]) and not np.isfinite(rows[1]["ce"])
    assert np.isfinite([row["loss"] for row in (rows[0], rows[3])]).all()
    for parts in zip(*map(jax.tree.leaves, states), strict=True):
        assert all(np.array_equal(parts[0], part) for part in parts), "devices agree"

    skipped, plain = run([make_batch(0), bad, make_batch(2)])[0][0], run([make_batch(0), make_batch(2)])[0][0]
    for name in ("params", "batch_stats", "opt_state"):
        assert all(map(np.array_equal, *(jax.tree.leaves(getattr(s, name)) for s in (skipped, plain))))


def test_every_tile_is_evaluated_once_on_any_number_of_devices(scenes):
    """With ten tiles in batches of eight, the second batch holds six padding tiles."""
    model = HFDNet(5, width=4)
    variables = jax.device_get(model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 2))))
    found = []
    for devices in (1, 8):
        parallel = make_parallel("jit", jax.devices()[:devices])
        evaluator = Evaluator(scenes, "test", Reading((0, 1), (0, 1, 2), threads=1), parallel, batch_size=8)
        found.append(evaluator(model, INPUTS, "sar", parallel.replicate(variables)))
    for scores in found:
        assert scores.matrix.sum() == 10 * 64 * 64 and scores.ignored == 0
    assert np.abs(found[0].matrix - found[1].matrix).sum() <= 0.002 * 10 * 64 * 64, "near-ties"
