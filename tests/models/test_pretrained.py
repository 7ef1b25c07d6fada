"""Pretrained encoders: agreement with PyTorch, rejected files, the stem, and training that starts from them."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from configs import default
from hfd_jax.core.checkpoint import CheckpointReader
from hfd_jax.core.errors import CheckpointError, ConfigError, UserError
from hfd_jax.core.interruption import Interruption
from hfd_jax.core.logs import MetricsLog
from hfd_jax.core.parallel import make_parallel
from hfd_jax.core.workdir import Workdir
from hfd_jax.models import pretrained
from hfd_jax.models.pretrained import band_sources, begin, read_encoder
from hfd_jax.models.resnet import STAGES, ResNet, fit_stem
from hfd_jax.models.torch_weights import take_resnet
from hfd_jax.train import loop
from hfd_jax.train.networks import networks_to_train, pretrained_file, teacher_spec
from hfd_jax.train.prerequisites import check_pretrained
from hfd_jax.train.run import Run
from hfd_jax.train.validate import check_fields
from tools import import_weights

WIDTH = 4
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def convolutions(depth):
    """Yields (name, name of its BatchNorm, shape) for each convolution of a narrow ResNet with torchvision's names."""
    yield "conv1", "bn1", (WIDTH, 3, 7, 7)
    inputs = WIDTH
    for stage, count in enumerate(BLOCKS[depth]):
        middle = WIDTH * 2**stage
        outputs = middle * 4 if depth >= 50 else middle
        for block in range(count):
            at = f"layer{stage + 1}.{block}."
            shapes = [(middle, inputs, 3, 3), (outputs, middle, 3, 3)]
            if depth >= 50:
                shapes = [(middle, inputs, 1, 1), (middle, middle, 3, 3), (outputs, middle, 1, 1)]
            for number, shape in enumerate(shapes, 1):
                yield f"{at}conv{number}", f"{at}bn{number}", shape
            if inputs != outputs:
                yield f"{at}downsample.0", f"{at}downsample.1", (outputs, inputs, 1, 1)
            inputs = outputs


@functools.cache
def drawn(depth):
    rng, arrays = np.random.default_rng(depth), {}
    for conv, norm, shape in convolutions(depth):
        # This scale keeps activations near 1 through all blocks.
        scale = np.sqrt(24 / np.prod(shape[1:]))
        arrays[f"{conv}.weight"] = (scale * (rng.random(shape) - 0.5)).astype(np.float32)
        for part, low in (("weight", 0.1), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            arrays[f"{norm}.{part}"] = (low + rng.random(shape[0])).astype(np.float32)
        arrays[f"{norm}.num_batches_tracked"] = np.array(7)
    return arrays | {"fc.weight": np.ones((10, 5), np.float32), "fc.bias": np.ones(10, np.float32)}


def published(depth=18, prefix=""):
    """Returns a random checkpoint with the names of torchvision and timm."""
    return {prefix + name: array for name, array in drawn(depth).items()}


def image():
    return np.random.default_rng(1).random((1, 64, 96, 3)).astype(np.float32)


@functools.cache
def jax_features(depth):
    variables = take_resnet(published(depth)).variables
    return jax.device_get(jax.jit(lambda v, x: ResNet(depth, WIDTH).apply(v, x, False))(variables, image()))


def numbers(feature):
    """Summarises [1, H, W, C]: mean; means weighted along rows, columns and channels, to detect shifts; maximum."""
    ramps = np.meshgrid(*(np.linspace(-1, 1, size) for size in feature.shape[1:]), indexing="ij")
    return [round(float(x), 5) for x in (feature.mean(), *((feature * ramp).mean() for ramp in ramps), feature.max())]


# Computed with PyTorch; test_every_stage_equals_pytorch recomputes them and shows the new numbers if they differ.
GOLDEN = {
    18: {
        "C2": [0.38891, -0.00675, 0.00172, -0.18626, 1.67048],
        "C3": [0.5982, 0.00851, -0.01116, -0.14769, 2.76266],
        "C4": [0.44348, 0.00313, -0.01089, -0.09072, 2.51678],
        "C5": [0.41814, 0.02274, -0.01132, 0.0246, 2.27247],
    },
    50: {
        "C2": [0.58252, 0.00291, 0.00679, 0.14324, 4.40569],
        "C3": [1.0308, -0.00874, -0.02075, -0.08024, 3.46201],
        "C4": [1.32688, 0.03405, 0.00947, -0.03266, 6.87161],
        "C5": [0.94458, 0.06421, 0.01737, 0.01896, 8.39214],
    },
}


@pytest.mark.parametrize("depth", [18, 50])
def test_every_stage_equals_the_stored_numbers_of_pytorch(depth):
    for stage in STAGES:
        feature = jax_features(depth)[stage]
        # Tolerance as below, and five stored decimals.
        np.testing.assert_allclose(numbers(feature), GOLDEN[depth][stage], rtol=0, atol=1e-5 + 1e-5 * feature.max())


@pytest.mark.parametrize("depth", [18, 50])
def test_every_stage_equals_pytorch(depth):
    torch = pytest.importorskip("torch", reason="PyTorch, which is optional, is not installed")
    from tools.bench import peer_torch

    network = peer_torch.ResNet(3, depth, WIDTH).eval()
    # Strict by default: names must be neither missing nor unexpected.
    network.load_state_dict({k: torch.tensor(v) for k, v in published(depth).items() if not k.startswith("fc.")})
    with torch.no_grad():
        features = network(peer_torch.images(image(), "cpu", channels_last=False))
    features = {stage: features[stage].permute(0, 2, 3, 1).numpy() for stage in STAGES}
    for stage in STAGES:
        # float32 sums in a different order: about 1e-6 of the largest value, which is about 10.
        np.testing.assert_allclose(jax_features(depth)[stage], features[stage], rtol=0, atol=1e-4)
    golden = {stage: pytest.approx(values, abs=2e-5) for stage, values in GOLDEN[depth].items()}
    assert {stage: numbers(features[stage]) for stage in STAGES} == golden


def equal(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


MOCO = published(prefix="state_dict.module.encoder_k.") | {"state_dict.module.queue": np.ones(3, np.float32)}


@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("module.", {}),
        ("model.backbone.", {"model.head.weight": np.ones(3, np.float32)}),
        ("state_dict.encoder.", {"optimizer.state.0.momentum_buffer": np.ones(3, np.float32)}),
        ("state_dict.module.encoder_q.", MOCO),
    ],
)
def test_a_resnet_is_found_under_a_prefix_and_other_arrays_are_left_out(prefix, others):
    found = take_resnet(published(prefix=prefix) | others)
    assert (found.depth, found.width, found.bands, found.prefix) == (18, WIDTH, 3, prefix)
    assert equal(found.variables, take_resnet(published()).variables)
    others = [name for name in others if "num_batches_tracked" not in name]
    assert found.left_out == sorted([*others, f"{prefix}fc.weight", f"{prefix}fc.bias"])


def test_one_of_several_resnets_is_chosen_by_its_prefix():
    average = {f"model_ema.{name}": 2 * array for name, array in published().items()}
    both = published(prefix="model.") | average
    with pytest.raises(ValueError, match=r"choose one of its ResNets with --prefix: 'model.', 'model_ema.'"):
        take_resnet(both)
    found = take_resnet(both, prefix="model_ema")
    expected = jax.tree.map(lambda x: 2 * x, take_resnet(published()).variables)
    assert equal(found.variables, expected)


def changed(changes):
    arrays = published() | changes
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer2.0.downsample.1.running_var": None, "layer1.0.se.weight": np.ones(2), "bn1.bias": np.ones(5)},
            r"not a ResNet-18 .*: bn1.bias: expected \(4,\), found \(5,\); "
            r"layer1.0.se.weight: expected nothing, found \(2,\); "
            r"layer2.0.downsample.1.running_var: expected \(8,\), found nothing",
        ),
        ({"conv1.weight": np.ones((4, 3, 3, 3))}, r"conv1.weight: expected \(4, 3, 7, 7\), found \(4, 3, 3, 3\)"),
        ({"conv1.weight": None}, r"conv1.weight: expected \(4, 3, 7, 7\), found nothing"),
        (
            {"conv1.weight": None, "conv1.0.weight": np.ones((2, 3, 3, 3))},
            "its stem has three 3x3 convolutions .*resnet18d",
        ),
        ({"layer2.0.downsample.1.weight": np.ones((8, 4, 1, 1))}, "its shortcuts pool before their convolution"),
        ({"layer4.2.conv1.weight": np.ones(1)}, "its stages have 2, 2, 2, 3 blocks of two convolutions; expected Res"),
        ({"layer1.0.conv1.weight": None}, "contains no ResNet: .*found bn1.bias, "),
        ({"bn1.running_var": np.full(4, np.nan, np.float32)}, "bn1.running_var contains values that are not finite"),
    ],
)
def test_parameters_that_do_not_match_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        take_resnet(changed(changes))


def test_with_a_given_depth_missing_parameters_are_listed():
    with pytest.raises(ValueError, match=r"not a ResNet-34.*: layer1.2.bn1.bias: .*found nothing.* \(and \d+ more\)"):
        take_resnet(published(), depth=34)


def test_bands_of_the_same_name_take_their_kernel_and_the_sum_is_preserved(rng):
    kernel = rng.normal(size=(7, 7, 3, 5)).astype(np.float32)
    rgb, total = ("R", "G", "B"), kernel.sum(2)
    np.testing.assert_array_equal(fit_stem(kernel, band_sources(rgb, rgb)), kernel)
    np.testing.assert_array_equal(fit_stem(kernel, band_sources(rgb, ("B4", "b03", "Blue"))), kernel)
    four = fit_stem(kernel, band_sources(rgb, ("B", "G", "R", "NIR")))
    expected = np.concatenate([kernel[:, :, ::-1], kernel.mean(2, keepdims=True)], 2) * 0.75
    np.testing.assert_allclose(four, expected, rtol=1e-5, atol=1e-6)
    two = fit_stem(kernel, band_sources(rgb, ("VV", "VH")))
    np.testing.assert_allclose(two, np.repeat(total[:, :, None] / 2, 2, 2), rtol=1e-5, atol=1e-6)
    # Sentinel-2 without blue: the sum is preserved, and so is the difference between red and green.
    some = fit_stem(kernel, band_sources(rgb, ("B3", "B4", "B8")))
    np.testing.assert_allclose(some.sum(2), total, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(some[:, :, 1] - some[:, :, 0], kernel[:, :, 0] - kernel[:, :, 1], atol=1e-5)
    for fitted in (four, two):
        np.testing.assert_allclose(fitted.sum(2), total, rtol=1e-5, atol=1e-5)
    sar = rng.normal(size=(7, 7, 2, 5)).astype(np.float32)
    np.testing.assert_array_equal(fit_stem(sar, band_sources(("VV", "VH"), ("VH", "VV"))), sar[:, :, ::-1])


@pytest.fixture
def encoder_file(tmp_path):
    """A file written by tools.import_weights: a narrow ResNet-18 with bands R, G, B."""
    path, source = tmp_path / "weights" / "resnet18.safetensors", tmp_path / "timm.safetensors"
    safetensors.numpy.save_file(published(), source)
    run_tool(source, path)
    return path


def run_tool(source, output, *flags):
    import_weights.main(import_weights.make_parser().parse_args([f"--input={source}", f"--output={output}", *flags]))


def test_the_file_has_the_names_of_this_project_and_records_its_origin(encoder_file, capsys):
    arrays, metadata = pretrained.read_safetensors(str(encoder_file))
    kernel = arrays["params/encoder/layer2_0/downsample_conv/kernel"]
    np.testing.assert_array_equal(kernel, published()["layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(arrays["batch_stats/encoder/bn1/var"], published()["bn1.running_var"])
    source = encoder_file.parent.parent / "timm.safetensors"
    assert (
        metadata.items() >= {"depth": "18", "stem_bands": "3", "bands": "R,G,B", "source": "timm.safetensors"}.items()
    )
    assert metadata["source_sha256"] == pretrained.sha256(str(source))
    assert equal(read_encoder(str(encoder_file)).variables, take_resnet(published()).variables)
    half = {name: array.astype(jnp.bfloat16) for name, array in published().items()}
    safetensors.numpy.save_file(half, source.with_name("half.safetensors"))
    run_tool(source.with_name("half.safetensors"), source.with_name("out.safetensors"))
    rounded = read_encoder(str(source.with_name("out.safetensors"))).variables["params"]["bn1"]["bias"]
    np.testing.assert_array_equal(rounded, half["bn1.bias"].astype(np.float32))
    with pytest.raises(ConfigError, match="is the input file; expected another path"):
        run_tool(source, source)
    with pytest.raises(ConfigError, match="--bands=VV,VH: expected 3 different names"):
        run_tool(source, encoder_file, "--bands=VV,VH")
    run_tool(source, encoder_file, "--bands=VV,VH,ratio")
    assert read_encoder(str(encoder_file)).bands == ("VV", "VH", "ratio")
    assert "fc.bias; fc.weight" in capsys.readouterr().out
    text = import_weights.make_parser().format_help()
    assert "python -m tools.import_weights --input=" in text and "sum over bands" in text


def test_damaged_and_foreign_files_are_named(encoder_file, tmp_path):
    content, path = encoder_file.read_bytes(), tmp_path / "other.safetensors"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="other.safetensors: damaged or not a safetensors file"):
        run_tool(path, tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match="other.safetensors: damaged or not a safetensors file"):
        read_encoder(str(path))
    for place in (content.index(b"R,G,B"), len(content) - 100):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match="damaged, the content does not match its digest"):
            read_encoder(str(path))
    with pytest.raises(CheckpointError, match="timm.safetensors: expected a file written by tools.import_weights"):
        read_encoder(str(tmp_path / "timm.safetensors"))
    with pytest.raises(CheckpointError, match="nowhere.pth: cannot be read"):
        run_tool(tmp_path / "nowhere.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_pytorch_checkpoint_is_read_without_running_code(encoder_file, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch, which is optional, is not installed")
    tensors = {name: torch.tensor(array) for name, array in published(prefix="module.").items()}
    path, output, ran = tmp_path / "moco.pth", tmp_path / "moco.safetensors", tmp_path / "ran"
    torch.save({"epoch": 3, "state_dict": tensors, "optimizer": {"param_groups": [{"lr": 0.1}]}}, path)
    run_tool(path, output)
    assert equal(read_encoder(str(output)).variables, read_encoder(str(encoder_file)).variables)

    class Code:
        def __reduce__(self):
            return ran.touch, ()

    torch.save({"state_dict": tensors, "args": Code()}, path)
    with pytest.raises(CheckpointError, match=r"moco.pth: contains a pickled .*, which is not loaded.*can run code"):
        run_tool(path, output)
    assert not ran.exists()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="moco.pth: damaged or not a PyTorch checkpoint"):
        run_tool(path, output)


def test_without_pytorch_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").touch()
    with pytest.raises(
        UserError, match=r"a.pth: reading this file needs PyTorch, which is not installed: pip install torch"
    ):
        run_tool(tmp_path / "a.pth", tmp_path / "b.safetensors")


@pytest.fixture
def shared(scenes, tmp_path):
    """The argument of train_network, with one device."""
    config = default.get_config()
    config.model.width, config.model.align = WIDTH, "none"  # compiles faster
    config.data.batch_size = 8
    config.teacher.steps = config.student.steps = 1
    parallel = make_parallel("jit", jax.devices()[:1])
    return Run(config, Workdir(str(tmp_path / "run")), scenes, parallel, MetricsLog(str(tmp_path / "log.jsonl")))


def test_training_starts_from_the_encoder_and_reads_it_once(shared, encoder_file, monkeypatch, capsys):
    states = []

    def no_steps(shared, training, interruption, state, *_):
        """Saves the initial state instead of training, which would need compilation."""
        states.append(jax.device_get(state.model_variables))
        record = training.record | {"unlogged": []}
        training.checkpoints.save(len(states), shared.parallel.single(state), record)
        training.checkpoints.close()

    monkeypatch.setattr(loop, "loop", no_steps)
    shared.config.teacher.pretrained, encoder = str(encoder_file), read_encoder(str(encoder_file))
    loop.train_network(shared, teacher_spec(), Interruption())
    stem, started = encoder.variables["params"]["conv1"]["kernel"], states[0]["params"]["encoder"]
    np.testing.assert_array_equal(started["conv1"]["kernel"], fit_stem(stem, [0, 1, 2, None]))
    assert equal(started["layer4_1"], encoder.variables["params"]["layer4_1"])
    assert equal(states[0]["batch_stats"]["encoder"], encoder.variables["batch_stats"])
    assert "R from R, G from G, B from B, NIR from the mean" in capsys.readouterr().out

    encoder_file.unlink()
    shared.config.teacher.steps = 2
    check_pretrained(shared.config, shared.workdir, [teacher_spec()])
    loop.train_network(shared, teacher_spec(), Interruption())
    assert equal(*states)
    reader = CheckpointReader(shared.workdir.checkpoints("teacher"))
    expected = encoder.metadata() | {"file": str(encoder_file), "blake2b": encoder.digest()}
    assert [reader.record(step)["pretrained"] for step in (1, 2)] == [expected] * 2


def test_which_networks_start_from_which_file(shared, encoder_file):
    config = shared.config
    config.teacher.pretrained, config.student.pretrained = str(encoder_file), "sar.safetensors"
    config.baselines = ("sar_only", "teacher_init")
    files = {run.name: pretrained_file(config, run) for run in networks_to_train(config)}
    assert files == {
        "teacher": str(encoder_file),
        "sar_only": "sar.safetensors",
        "teacher_init": "",
        "student": "sar.safetensors",
    }
    with pytest.raises(
        CheckpointError, match=r"config.student.pretrained: sar.safetensors: no such file. Expected a file that"
    ):
        check_pretrained(config, shared.workdir, networks_to_train(config))
    config.student.pretrained = str(encoder_file)
    check_pretrained(config, shared.workdir, networks_to_train(config))
    for field, value in (("depth", 50), ("width", 64)):
        config.model[field], before = value, config.model[field]
        message = f"config.model.{field} is {value}: config.teacher.pretrained names .*, a ResNet-18 of width 4"
        with pytest.raises(ConfigError, match=message):
            check_pretrained(config, shared.workdir, networks_to_train(config))
        config.model[field] = before
    for name in ("unet", "mpresnet"):  # mpresnet has several copies of two stages
        config.baselines = (name,)
        with pytest.raises(ConfigError, match=f"config.student.pretrained is .*: {name} has no plain ResNet encoder"):
            check_pretrained(config, shared.workdir, networks_to_train(config))
    config.baselines = ()
    config.student.init = "teacher"
    with pytest.raises(ConfigError, match=r"config.student.pretrained is .*student.init is 'teacher'"):
        check_fields(config)
    config.student.init, config.teacher.checkpoint = "random", "elsewhere"
    with pytest.raises(ConfigError, match=r"config.teacher.pretrained is .*teacher.checkpoint already names a teacher"):
        check_fields(config)


def test_a_file_that_does_not_fit_or_differs_between_processes_is_refused(encoder_file, monkeypatch):
    encoder = read_encoder(str(encoder_file))
    network = {key: {"encoder": part} for key, part in encoder.variables.items()}
    fitted, _ = begin(network, str(encoder_file), ("R", "G", "B"))
    assert equal(fitted, network)
    with pytest.raises(
        CheckpointError, match=r"does not fit the network: params/encoder/conv1/kernel: expected \(7, 7, 3"
    ):
        begin(network, str(encoder_file), ("VV", "VH"))
    monkeypatch.setattr(pretrained, "same_everywhere", lambda number: False)
    with pytest.raises(CheckpointError, match="the file differs between processes"):
        begin(network, str(encoder_file), ("R", "G", "B"))
