"""All distillation methods together in the student's step: on several devices, with skipped steps, and resumed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hfd_jax.core.checkpoint import Checkpoints
from hfd_jax.core.parallel import make_parallel
from hfd_jax.distill.registry import METHODS, Combined
from hfd_jax.models.layers import BatchNorm
from hfd_jax.models.upsampling import upsample
from hfd_jax.train import steps
from hfd_jax.train.state import init_fn
from tests.pairs import SMALL, WITHOUT_PARAMETERS
from tests.train.test_steps import CLASSES, INPUTS, make_batch

# All methods in the student's step.


class Tiny(nn.Module):
    """A network with the interface of `HFDNet` that compiles in a second."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (4, 4), strides=4, use_bias=False)(x)
        x = nn.relu(BatchNorm(train)(x))
        return upsample(nn.Conv(CLASSES, (1, 1), name="classifier")(x), (32, 32)), {"A": x}

    @nn.nowrap
    def classify(self, params, feature, shape):
        return upsample(nn.Conv(CLASSES, (1, 1)).apply({"params": params["classifier"]}, feature), shape)


def make_setup():
    options = {**SMALL, "cirkd": {"pixels": 64, "regions": 32}}
    modules = tuple(METHODS[name](**options.get(name, {})) for name in METHODS)
    return steps.Setup(
        model=Tiny(),
        sensor="sar",
        # Not Adam, whose steps barely depend on the size of the gradient.
        tx=optax.sgd(1e-2),
        inputs=INPUTS,
        objective=steps.Objective(distil=tuple((name, 0.1) for name in METHODS)),
        teacher=Tiny(),
        distiller=Combined(modules),
    )


def prepared(kind, devices):
    """Returns (parallel, compiled step, state, teacher)."""
    parallel = make_parallel(kind, jax.devices()[:devices])
    setup = make_setup()
    initialise = init_fn(setup.model, setup.tx, 2, setup.distiller, (setup.teacher, 3), 32)
    state = parallel.init(initialise, jax.random.key(0))
    teacher = jax.jit(setup.teacher.init)(jax.random.key(9), jnp.zeros((1, 32, 32, 3)))
    return parallel, parallel.train_step(steps.train_step(setup)), state, parallel.replicate(jax.device_get(teacher))


def batch_of(number):
    """Returns four images; the first and the last are partly invalid, with unequal shares on two devices."""
    batch = make_batch(number, size=4, edge=32)
    batch["sar_valid"][:], batch["eo_valid"][:] = True, True
    batch["sar_valid"][0, :24] = batch["eo_valid"][3, :, :12] = False
    return batch


@pytest.fixture(scope="module")
def trained():
    """Takes two jitted steps on one device: ((parallel, step, teacher), states, metrics)."""
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
    learning = set(METHODS) - set(WITHOUT_PARAMETERS) - {"nfd"}  # nfd: no projection, as the channels are equal here
    assert set(states[0].params["distiller"]) == learning and set(states[0].memory) == {"cirkd", "fakd"}
    assert [int(state.memory["fakd"]["steps"]) for state in states] == [1, 2], "its strength grows"
    counts = [state.memory["cirkd"]["regions_count"].tolist() for state in states]
    assert counts == [[4] * CLASSES, [8] * CLASSES], "one class mean per image"


def test_two_devices_train_like_one_under_pmap(trained):
    """Draws and memory are the same; values agree up to the order of float32 sums, which AICSD amplifies by squaring."""
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


def test_a_skipped_step_leaves_the_memory_unchanged(trained):
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
