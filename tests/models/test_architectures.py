"""The architectures: published sizes, a common interface, and use as student, teacher and baseline."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import baselines, default
from configs import scenes as scenes_config
from hfd_jax.core import options
from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.collectives import AXIS
from hfd_jax.core.errors import CheckpointError, ConfigError
from hfd_jax.core.workdir import Workdir, check_claim, claim, jsonable
from hfd_jax.inference import restore
from hfd_jax.inference.restore import network_from_record
from hfd_jax.models import hrnet, registry, resnet, segformer
from hfd_jax.models.folding import fold
from hfd_jax.models.hfdnet import HFDNet
from hfd_jax.models.hrsarnet import HRSARNet
from hfd_jax.models.layers import DepthwiseConvolution, TransposedConvolution, max_pool_2x2
from hfd_jax.models.registry import ARCHITECTURES, DEFAULT
from hfd_jax.models.resnet import ResNet
from hfd_jax.train import build, stages, steps
from hfd_jax.train.networks import architecture_name, networks_to_train, student_spec
from hfd_jax.train.state import init_fn, student_from_teacher
from hfd_jax.train.validate import check_fields
from tests.conftest import run_python
from tools.bench import cases

OTHERS = [name for name in ARCHITECTURES if name != DEFAULT]
BANDS, CLASSES, SHAPE = 2, 3, (64, 96)
# A student distilled at the taps that both networks have at the same stride.
OF_HR_SAR_NET = {"model.width": 4, "student.architecture": "hrsarnet", "distill.hfd.taps": ("C2", "C3")}


def make(name, classes=CLASSES, **fields):
    known = options.defaults(ARCHITECTURES[name])
    common = {k: v for k, v in fields.items() if k in ("dtype", "remat")}
    return registry.build(
        {"architecture": name} | {k: v for k, v in fields.items() if k in known}, classes=classes, **common
    )


def shapes(model, bands=BANDS):
    image = jnp.zeros((2, *SHAPE, bands))
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), image))


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def random_like(tree, seed=0):
    """Random values for shapes: kernels that preserve the size of activations, norms that are not the identity."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, tree)


@pytest.fixture
def shallow(monkeypatch):
    """Reduces the architectures to one block per stage, which halves the compilation time."""
    monkeypatch.setitem(resnet.DEPTHS, 18, (1, 1, 1, 1))
    monkeypatch.setattr(hrnet, "MODULES", (1, 1, 0))
    monkeypatch.setattr(hrnet, "BLOCKS", 1)
    # For the transformer, one stage with keys from a downsampled map and one without.
    for field, value in {"BLOCKS": 1, "TAPS": ("C2", "C3"), "HEADS": (1, 2), "REDUCTIONS": (8, 1)}.items():
        monkeypatch.setattr(segformer, field, value)


@pytest.mark.parametrize(
    ("name", "depth", "bands", "classes", "parameters"),
    [
        ("fcn", 50, 3, 21, 32_957_013),
        ("unet", None, 3, 2, 31_037_698),
        ("deeplabv3plus", 50, 3, 21, 26_682_725),
        ("pspnet", 50, 3, 21, 46_592_597),
        ("hrnet", None, 3, 19, 3_939_309),
        ("hrsarnet", None, 1, 3, 62_675),
        ("mpresnet", 34, 3, 7, 54_962_631),
        ("segformer_b0", None, 3, 150, 3_752_694),
    ],
)
def test_number_of_parameters(name, depth, bands, classes, parameters):
    """Compares with published numbers, at width 64 and with the published number of classes:

    fcn: torchvision's fcn_resnet50 without its auxiliary classifier (35,322,218 with it).
    unet: 31,030,658 in the paper (1 band, no batch normalisation), plus 1,152 for 2 more bands and 5,888 norm scales.
    deeplabv3plus: the number in segmentation_models_pytorch with ResNet-50, which places its two decoder convolutions
      differently (the paper has only ResNet-101 and Xception).
    pspnet: 23,508,032 in ResNet-50, 4,198,400 in the bins, 18,886,165 in the head. With the paper's stem of three 3x3
      convolutions 46.7 M, as reimplementations report.
    hrnet: 3.9 M in the authors' table for HRNetV2-W18-Small-v2 on Cityscapes, without 270 biases before a norm.
    hrsarnet: "63 k", assumed for one band and three classes, without 288 biases before norms.
    mpresnet: the authors' code, without its auxiliary classifier (66,695) and 1,536 biases before norms.
    segformer_b0: 3.8 M in the paper for ADE20K; 3,752,694 in the weights published by the authors.
    """
    model = make(name, classes, **({"depth": depth} if depth else {}))
    assert count(shapes(model, bands)[1]["params"]) == parameters


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_interface(name):
    """Logits and taps have the right shapes for a non-square image; parameters and logits stay float32 in bfloat16."""
    model = make(name, width=8, dtype=jnp.bfloat16)
    (logits, features), variables = shapes(model)
    assert logits.shape == (2, *SHAPE, CLASSES) and logits.dtype == jnp.float32
    assert features.keys() == ARCHITECTURES[name].tap_strides.keys()
    for tap, stride in ARCHITECTURES[name].tap_strides.items():
        assert features[tap].shape[1:3] == (SHAPE[0] // stride, SHAPE[1] // stride), tap
        assert features[tap].dtype == jnp.bfloat16, tap
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", OTHERS)
def test_every_norm_is_averaged_over_devices_and_remat_keeps_the_parameters(name, shallow):
    model = make(name, width=4, remat=True)
    variables = shapes(make(name, width=4))[1]
    train = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), axis_env=[(AXIS, 2)])
    text = str(train(variables, jnp.zeros((2, *SHAPE, BANDS))))
    norms = [path for path, _ in jax.tree.leaves_with_path(variables["batch_stats"]) if path[-1].key == "mean"]
    assert text.count(" psum[") == 2 * len(norms) > 0, "mean and mean of squares"
    assert " remat2[" in text


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_teacher_weights_fit_the_same_architecture_with_other_bands(name, shallow):
    model = make(name, width=4)
    wanted, teacher = (shapes(model, bands)[1] for bands in (2, 5))
    fitted = student_from_teacher(wanted, random_like(teacher), model.stems)
    assert jax.tree.map(lambda x: x.shape, fitted) == jax.tree.map(lambda x: x.shape, wanted)


@pytest.mark.parametrize("name", OTHERS)
def test_training_reaches_every_parameter_and_statistic(name, rng, shallow):
    # With fewer channels a layer norm of the transformer would carry no information.
    model, x = make(name, width=8, rates=(1, 3)), rng.normal(size=(2, *SHAPE, BANDS)).astype(np.float32)
    variables = random_like(shapes(model)[1])

    def loss(params):
        (logits, _), changed = model.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
        return jnp.mean(jnp.sin(logits) ** 2), changed["batch_stats"]

    (_, statistics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    for path, leaf in jax.tree.leaves_with_path(gradient):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # A bias of the keys does not change the attention.
        assert np.all(np.isfinite(leaf)) and (np.any(leaf) or name.endswith("key/bias")), name
        assert leaf.ndim < 4 or np.any(leaf, (2, 3)).all(), f"{name}: every position of the kernel has a gradient"
    for (path, new), old in zip(
        jax.tree.leaves_with_path(statistics), jax.tree.leaves(variables["batch_stats"]), strict=True
    ):
        assert np.all(np.isfinite(new)) and np.any(new != old), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", OTHERS)
def test_a_folded_teacher_computes_the_same_and_nearly_so_in_bfloat16(name, rng, shallow):
    """Also, `classify` repeats the last layers: the limit of the teacher's share relies on it."""
    model, x = make(name, width=8), rng.normal(size=(1, *SHAPE, BANDS)).astype(np.float32)
    variables = random_like(shapes(model)[1])

    def outputs(variables):
        folded = fold(model, variables)
        half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), folded)
        logits, features = as_trained = model.apply(variables, x)
        again = model.classify(variables["params"], features["A"], logits.shape[1:3])
        return as_trained, model.apply(folded, x), model.clone(dtype=jnp.bfloat16).apply(half, x), folded, again

    as_trained, folded, half, parameters, again = jax.jit(outputs)(variables)
    np.testing.assert_allclose(again, as_trained[0], rtol=1e-5, atol=1e-6)
    assert set(parameters) == {"params"} and count(parameters) < count(variables)
    for one, two, three in zip(*map(jax.tree.leaves, (as_trained, folded, half)), strict=True):
        largest = float(jnp.abs(one).max())
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5 * largest)
        # 8 bits of mantissa through about 20 layers.
        assert float(jnp.abs(one - three).max()) < 0.1 * largest


@pytest.mark.parametrize("output_stride", [16, 8])
def test_a_dilated_encoder_equals_the_strided_one_at_its_positions(rng, output_stride):
    """With the same weights, both encoders give the same features at the positions of the strided one."""
    x, strided, dilated = rng.normal(size=(1, 64, 64, 2)), ResNet(18, 4), ResNet(18, 4, output_stride=output_stride)
    variables = random_like(jax.eval_shape(lambda: strided.init(jax.random.key(0), x, False)))
    one, other = (jax.jit(lambda v, m=m: m.apply(v, x, False))(variables) for m in (strided, dilated))
    for tap in ("C4", "C5"):
        step = other[tap].shape[1] // one[tap].shape[1]
        np.testing.assert_allclose(other[tap][:, ::step, ::step], one[tap], atol=1e-4 * float(jnp.abs(one[tap]).max()))
    assert other["C5"].shape[1] == 64 // output_stride


@pytest.mark.parametrize("dilation", [1, 3])
def test_depthwise_convolution_equals_the_library(rng, dilation):
    import flax.linen as nn

    x = rng.normal(size=(2, 5, 7, 4)).astype(np.float32)
    library = nn.Conv(4, (3, 3), padding=dilation, kernel_dilation=dilation, feature_group_count=4)
    variables = library.init(jax.random.key(0), x)
    found = DepthwiseConvolution(dilation, use_bias=True).apply(variables, x)
    np.testing.assert_allclose(found, library.apply(variables, x), atol=1e-5)


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_transposed_convolution_equals_the_library(rng, kernel):
    """The library pads the map after inserting zeros: PyTorch's padding (k - 1) // 2 is k - 1 - (k - 1) // 2 there."""
    x, weight = rng.normal(size=(2, 5, 7, 4)), rng.normal(size=(kernel, kernel, 4, 3))
    before = kernel - 1 - (kernel - 1) // 2
    padding, layout = ((before, kernel - before),) * 2, ("NHWC", "HWIO", "NHWC")
    found = TransposedConvolution(3, kernel).apply({"params": {"kernel": weight}}, x)
    expected = jax.lax.conv_transpose(x, weight, (2, 2), padding, dimension_numbers=layout)
    assert found.shape == (2, 10, 14, 3)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_max_pool_2x2(rng):
    x = rng.normal(size=(2, 4, 6, 3))
    expected = x.reshape(2, 2, 2, 3, 2, 3).max((2, 4))
    np.testing.assert_array_equal(max_pool_2x2(x.astype(np.float32)), expected.astype(np.float32))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_a_config(name):
    config = baselines.get_config(name)
    check_fields(config)
    assert {architecture_name(config, run) for run in networks_to_train(config)} == {name}


def test_the_defaults_of_config_model_are_those_of_hfdnet():
    """The check of unused fields compares with these defaults."""
    model = default.get_config().model.to_dict()
    assert model.pop("architecture") == DEFAULT
    assert model.pop("rates") == options.defaults(ARCHITECTURES["deeplabv3plus"])["rates"]
    assert options.defaults(ARCHITECTURES[DEFAULT]) == model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.architecture": "u-net"}, "config.model.architecture is 'u-net': did you mean 'unet'"),
        ({"student.architecture": "pspnt"}, "config.student.architecture is 'pspnt': did you mean 'pspnet'"),
        ({"baselines": ("unett",)}, "config.baselines is .*'unett' is unknown; did you mean 'unet'"),
        (
            {"model.architecture": "unet", "model.context": True, "baselines": ("hrnet",)},
            "config.model.context is True: hrnet and unet do not use it; leave it at False",
        ),
        ({"model.architecture": "hrsarnet", "model.width": 32}, "config.model.width is 32: hrsarnet does not use it"),
        ({"baselines": ("segformer_b0",), "model.width": 5}, "config.model.width is 5: expected an even number"),
        (
            {"student.architecture": "unet"},
            r"config.distill.hfd.taps is .*unet has no tap 'C5'; expected some of: C2 \(stride 4\), C3 \(stride 8\), ",
        ),
        ({"model.architecture": "hrsarnet"}, "config.distill.hfd.taps is .*hrsarnet has no tap 'C4'"),
        ({"model.rates": (1, 2)}, r"config.model.rates is \(1, 2\): hfdnet does not use it"),
        ({"model.architecture": "deeplabv3plus", "model.rates": (1, 0)}, "config.model.rates .*integers above 0"),
        ({"model.architecture": "deeplabv3plus", "model.rates": (2, 2)}, "config.model.rates .*a rate is named twice"),
        (
            {"student.architecture": "hrnet", "student.init": "teacher"},
            "config.student.init is 'teacher': the student is 'hrnet', the teacher 'hfdnet'",
        ),
        (
            {"student.architecture": "hrnet", "baselines": ("teacher_init",)},
            "config.baselines is .*'teacher_init' starts from the teacher's weights",
        ),
    ],
)
def test_invalid_choices_are_named(fields, message):
    config = default.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=message):
        check_fields(config)


@pytest.mark.parametrize(
    "fields",
    [
        {"model.context": True, "student.architecture": "segformer_b0"},  # the teacher uses it
        {"model.context": True, "baselines": ("unet",)},
        {"student.architecture": "unet", "distill.method": ()},
        {"model.architecture": "unet", "stage": "teacher"},
        {"model.architecture": "deeplabv3plus", "data.crop": 32},  # C5 has 2 x 2 positions
    ],
)
def test_valid_choices_are_accepted(fields):
    config = default.get_config()
    config.update_from_flattened_dict(fields)
    check_fields(config)


def test_records_and_workdirs_without_an_architecture_still_open(tmp_path, facts):
    old = {"depth": 18, "width": 8, "align": "flow", "align_channels": 0, "context": False}
    record = {"title": "student", "model": old, "facts": facts.to_dict(), "dtype": "float32"}
    record["config"] = {"data": {"crop": 64}}
    model = network_from_record(record)
    assert isinstance(model, HFDNet) and model.width == 8
    # Options that came later have the value that describes the network of that time, not their default.
    assert (model.stride, tuple(model.detail_channels)) == (4, ())
    with pytest.raises(CheckpointError, match="student is of architecture 'vit'; expected one of: hfdnet, fcn, "):
        network_from_record(record | {"model": {"architecture": "vit"}})

    config, workdir = default.get_config(), Workdir(str(tmp_path))
    claim(workdir, config)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["model"]["architecture"], stored["student"]["architecture"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    check_claim(workdir, config)


def test_a_config_file_takes_an_architecture_after_a_colon(tmp_path):
    flags = ("--config=configs/baselines.py:unett", f"--workdir={tmp_path / 'run'}")
    done = run_python("main.py", *flags, check=False)
    assert done.returncode == 1 and "error: config.model.architecture is 'unett': did you mean 'unet'" in done.stderr


@pytest.mark.parametrize("name", OTHERS)
def test_a_record_describes_its_network(name, scenes):
    """For a baseline, and for a student whose teacher has another architecture."""
    config = scenes_config.get_config()
    config.baselines, config.student.architecture = (name,), name
    by_name = {run.name: run for run in networks_to_train(config)}
    assert list(by_name) == ["teacher", name, "student"]
    assert by_name[name].title == f"{ARCHITECTURES[name].title} (SAR)"
    assert by_name[name].sensor == "sar" and not by_name[name].needs_teacher
    inputs = build.make_inputs(config, scenes.facts, scenes.statistics)
    for run in by_name.values():
        record = jsonable(build.make_record(config, run, scenes, inputs, {}))
        assert record["model"]["architecture"] == (DEFAULT if run.name == "teacher" else name)
        found = network_from_record(record)
        assert found == build.make_model(config, run, len(scenes.facts.class_names)) and hash(found)


def test_an_option_of_a_newer_version_is_named():
    record = {"title": "student", "model": {"architecture": "unet", "width": 8, "attention": True}}
    with pytest.raises(CheckpointError, match="student has the option 'attention', which unet does not have"):
        restore.model_config(record)


def test_hfdnet_teaches_another_architecture(shallow):
    config = scenes_config.get_config()
    config.update_from_flattened_dict(OF_HR_SAR_NET | {"model.align": "none"})
    of_batch = cases.Shapes(batch=4, size=64, sar_bands=2, eo_bands=3, classes=CLASSES)
    setup = cases.make_setup(config, of_batch, student_spec(config))
    assert isinstance(setup.teacher, HFDNet) and isinstance(setup.model, HRSARNet)
    init = init_fn(setup.model, setup.tx, of_batch.sar_bands, setup.distiller, (setup.teacher, of_batch.eo_bands))
    state = jax.eval_shape(init, jax.random.key(0))
    before, batch_stats = random_like(state.params), random_like(state.batch_stats)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    state = state.replace(params=before, batch_stats=batch_stats)
    step, teacher = jax.jit(steps.train_step(setup)), random_like(shapes(setup.teacher, of_batch.eo_bands)[1])
    for seed in range(2):
        state, metrics = step(state, fold(setup.teacher, teacher), cases.make_batch(of_batch, seed))
        assert np.isfinite(metrics["loss"]) and metrics["hfd_C2"] > 0 and metrics["hfd_C3"] > 0
    assert not state.skipped
    for (path, old), new in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(state.params), strict=True):
        assert np.any(old != new), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_a_run_with_a_student_and_a_baseline_of_another_architecture(tmp_path, scenes_dir):
    """Trains and evaluates; the records name the architectures."""
    config = scenes_config.get_config()
    small = {
        "data.dir": scenes_dir,
        "data.batch_size": 8,
        "data.scenes.train": 24,
        "data.scenes.validation": 6,
        "data.scenes.test": 10,
        "baselines": ("unet",),
        "teacher.steps": 2,
        "student.steps": 2,
    }
    config.update_from_flattened_dict(small | OF_HR_SAR_NET)
    rows = stages.train(config, str(tmp_path / "run"))
    assert list(rows) == ["teacher (EO)", "U-Net (SAR)", "HFD student (SAR)"]
    assert all(np.isfinite(row.mean_iou) for row in rows.values())
    for network, name in (("teacher", DEFAULT), ("unet", "unet"), ("student", "hrsarnet")):
        record = CheckpointReader(str(tmp_path / "run" / "checkpoints" / network)).record(2)
        assert record["model"]["architecture"] == name
