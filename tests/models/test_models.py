"""HFD-Net and its layers: shapes, parameter counts, alignment, folding, and agreement with the library's layers."""

import functools
import re
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfd_jax.core.options import defaults
from hfd_jax.core.platform import compiling_for
from hfd_jax.models.alignment import FeatureAlignment, Selection, bin_means, box_mean, warp
from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.decoder import DetailPath, FineDecoder
from hfd_jax.models.folding import fold
from hfd_jax.models.hfdnet import HFDNet
from hfd_jax.models.layers import BatchNorm, JoinedConvolution, convolution, max_pool, mean_pool_2x2
from hfd_jax.models.resnet import ResNet
from hfd_jax.models.upsampling import convolve_upsampled, upsample


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_zero_flow_is_bilinear_upsampling(rng, scale):
    x = rng.normal(size=(2, 5, 7, 3)).astype(np.float32)
    flow = np.zeros((2, 5 * scale, 7 * scale, 2), np.float32)
    np.testing.assert_allclose(warp(x, flow), upsample(x, flow.shape[1:3]), atol=1e-5)


@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (0, 1), (-1, 0), (0, -2), (3, 2)])
def test_flow_of_whole_pixels_shifts_by_that_many_pixels(rng, dy, dx):
    """The flow is in pixels of the OUTPUT grid; the map is not square and smaller than the output."""
    x = rng.normal(size=(1, 6, 4, 2)).astype(np.float32)
    height, width = 24, 16
    flow = np.broadcast_to(np.array([dy, dx], np.float32), (1, height, width, 2))
    plain = np.asarray(upsample(x, (height, width)))
    rows, cols = np.clip(np.arange(height) + dy, 0, None), np.clip(np.arange(width) + dx, 0, None)
    inside = np.ix_([0], (np.arange(height) + dy >= 0) & (rows < height), (np.arange(width) + dx >= 0) & (cols < width))
    expected = plain[:, np.clip(rows, 0, height - 1)][:, :, np.clip(cols, 0, width - 1)]
    np.testing.assert_allclose(np.asarray(warp(x, flow))[inside], expected[inside], atol=1e-5)


def test_border_values_extend_outside_the_map(rng):
    x = rng.normal(size=(1, 3, 3, 1)).astype(np.float32)
    far = np.full((1, 6, 6, 2), 100.0, np.float32)
    np.testing.assert_allclose(warp(x, far), np.full((1, 6, 6, 1), x[0, 2, 2, 0]), atol=1e-6)
    np.testing.assert_allclose(warp(x, -far), np.full((1, 6, 6, 1), x[0, 0, 0, 0]), atol=1e-6)


def test_warp_gradients_match_finite_differences(rng):
    x = rng.normal(size=(1, 4, 4, 2)).astype(np.float32)
    flow = rng.uniform(-0.9, 0.9, (1, 8, 8, 2)).astype(np.float32)
    weight = rng.normal(size=(1, 8, 8, 2)).astype(np.float32)

    def total(x, flow):
        return float(jnp.sum(warp(x, flow) * weight))

    for argument in (0, 1):
        gradient = jax.grad(lambda *a: jnp.sum(warp(*a) * weight), argument)(x, flow)
        for _ in range(5):
            direction = rng.normal(size=np.shape(gradient)).astype(np.float32)
            step = 1e-3
            moved = [(x, flow), (x, flow)]
            moved = [
                tuple(v + sign * step * direction if k == argument else v for k, v in enumerate((x, flow)))
                for sign in (1, -1)
            ]
            numeric = (total(*moved[0]) - total(*moved[1])) / (2 * step)
            # float32 sums of 128 terms, and a kink when a sample crosses a pixel centre.
            assert float(jnp.sum(gradient * direction)) == pytest.approx(numeric, rel=0.03, abs=0.03)


@pytest.mark.parametrize("align", ["flow", "none"])
@pytest.mark.parametrize("context", [False, True])
def test_alignment_shapes_do_not_depend_on_its_options(align, context):
    features = {f"C{k}": jnp.ones((2, 64 // 2**k, 96 // 2**k, 4 * k)) for k in (2, 3, 4, 5)}
    module = FeatureAlignment(8, align=align, context=context)
    shape = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), features, False)[0])
    assert shape.shape == (2, 16, 24, 8)


def test_untrained_flow_is_a_plain_pyramid(rng):
    """The flow is initialised with zeros, so that both variants compute the same with the same weights."""
    features = {f"C{k}": rng.normal(size=(1, 64 // 2**k, 64 // 2**k, 4)).astype(np.float32) for k in (2, 3, 4, 5)}
    aligned, plain = FeatureAlignment(8, align="flow"), FeatureAlignment(8, align="none")
    variables = aligned.init(jax.random.key(0), features, False)
    shared = {k: v for k, v in variables["params"].items() if not k.startswith("flow")}
    one = aligned.apply(variables, features, False)
    other = plain.apply({**variables, "params": shared}, features, False)
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_bin_means_are_adaptive_average_pooling():
    x = np.arange(5.0, dtype=np.float32).reshape(1, 5, 1, 1)
    # Cells 0-1, 1-3, 3-4 (start floor(i n / bins), end ceil((i + 1) n / bins)).
    np.testing.assert_allclose(bin_means(x, 3)[0, :, 0, 0], [0.5, 2.0, 3.5])
    np.testing.assert_allclose(bin_means(x, 1)[0, :, 0, 0], [2.0])


@pytest.mark.parametrize(("shape", "box"), [((9, 12), 4), ((5, 12), 8), ((12, 5), 5), ((7, 7), 1)])
def test_box_mean_averages_the_whole_box_around_each_position(rng, shape, box):
    x = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    expected = np.zeros((2, *(1 if n <= box else n for n in shape), 3))
    for i in range(expected.shape[1]):
        for j in range(expected.shape[2]):
            rows, cols = (
                slice(0, n) if n <= box else slice(start := min(max(k - box // 2, 0), n - box), start + box)
                for k, n in zip((i, j), shape, strict=True)
            )
            expected[:, i, j] = x[:, rows, cols].mean((1, 2))
    np.testing.assert_allclose(box_mean(x, box), expected, atol=1e-6)


def test_maps_within_the_box_are_averaged_as_a_whole():
    """Both compile to the same program, so training is bit-identical; larger maps use a different program."""
    x, plain = jnp.ones((1, 4, 6, 3)), Selection(4)
    variables = jax.eval_shape(lambda: plain.init(jax.random.key(0), x, False))

    def program(box):
        return str(jax.make_jaxpr(lambda v, x: plain.clone(box=box).apply(v, x, False))(variables, x))

    assert program(6) == program(0) != program(5)


# The published networks without their classifier: stem, blocks, BatchNorm scale and bias.
@pytest.mark.parametrize(
    ("depth", "parameters"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160)]
)
def test_encoder_has_the_standard_number_of_parameters(depth, parameters):
    shapes = jax.eval_shape(lambda: ResNet(depth).init(jax.random.key(0), jnp.ones((1, 64, 64, 3)), False))
    assert count(shapes["params"]) == parameters


@pytest.mark.parametrize(("depth", "stride"), [(18, 1), (18, 2), (50, 4)])
def test_hfdnet_shapes_and_strides(depth, stride):
    model = HFDNet(classes=7, depth=depth, width=8, stride=stride, detail_channels=(3, 5, 6))
    (logits, features), _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.ones((2, 64, 128, 4))))
    assert logits.shape == (2, 64, 128, 7) and logits.dtype == jnp.float32
    strides = HFDNet.strides({"stride": stride})
    assert strides["A"] == stride and features.keys() == strides.keys()
    for tap, of_tap in strides.items():
        assert features[tap].shape[1:3] == (64 // of_tap, 128 // of_tap)
    expansion = 4 if depth == 50 else 1
    assert features["C5"].shape[-1] == 8 * 8 * expansion
    assert features["P"].shape[-1] == 8 * (4 if depth == 50 else 2)
    assert features["A"].shape[-1] == {1: 3, 2: 5, 4: 6}[stride]


def test_without_detail_channels_the_pyramid_is_classified(rng):
    """The network of version 0.1: checkpoints whose record lacks both options have its parameters."""
    x = rng.normal(size=(1, 64, 64, 2)).astype(np.float32)
    model = HFDNet(classes=3, width=4, stride=4, detail_channels=())
    (_, features), variables = model.init_with_output(jax.random.key(0), x)
    assert variables["params"].keys() == {"encoder", "alignment", "classifier"}
    np.testing.assert_array_equal(features["A"], features["P"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 3}, "expected one of: 1, 2, 4"),
        ({"detail_channels": ()}, r"\(\) needs model.stride=4; it is 1"),
        ({"detail_channels": (8, 16)}, r"\(8, 16\) given; expected three integers, or \(\)"),
        ({"detail_channels": (8, 16, 0)}, "expected more than 0"),
    ],
)
def test_impossible_fine_levels_are_refused(options, message):
    found = [why for _, why in HFDNet.problems(defaults(HFDNet) | options)]
    assert any(re.search(message, why) for why in found), found


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 4), (1, 9)])
def test_convolutions_of_small_maps_equal_the_library(rng, shape, stride):
    """Maps smaller than the kernel are convolved by a matrix product."""
    x = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    own = convolution(5, 3, stride)
    library = nn.Conv(5, (3, 3), stride, ((1, 1), (1, 1)), use_bias=False)
    variables = own.init(jax.random.key(0), x)
    one, other = (
        jax.value_and_grad(lambda v, x, m=module: jnp.sum(m.apply(v, x) ** 2), argnums=(0, 1))(variables, x)
        for module in (own, library)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


def test_mean_pooling_equals_the_library(rng):
    x = rng.normal(size=(2, 8, 12, 3)).astype(np.float32)
    np.testing.assert_allclose(mean_pool_2x2(x), nn.avg_pool(x, (2, 2), (2, 2)), atol=1e-6)


def test_a_coarser_detail_path_reads_means_of_the_image(rng):
    """At stride 2 the finest level sees the image at half its resolution, and nothing else."""
    x = rng.normal(size=(1, 16, 16, 2)).astype(np.float32)
    path = DetailPath((3, 5, 6), stride=2)
    maps, variables = path.init_with_output(jax.random.key(0), x, False)
    assert {stride: found.shape[1:] for stride, found in maps.items()} == {2: (8, 8, 5), 4: (4, 4, 6)}
    flat = np.repeat(np.repeat(mean_pool_2x2(x), 2, 1), 2, 2)
    np.testing.assert_allclose(maps[2], path.apply(variables, flat, False)[2], atol=1e-5)


def test_the_decoder_projects_before_it_upsamples_without_changing_the_result(rng):
    pyramid = rng.normal(size=(1, 4, 4, 7)).astype(np.float32)
    detail = {2: rng.normal(size=(1, 8, 8, 5)).astype(np.float32)}
    found, variables = FineDecoder().init_with_output(jax.random.key(0), pyramid, detail, False)
    params = variables["params"]
    projected = upsample(pyramid, (8, 8)) @ params["project2"]["kernel"][0, 0]
    merged = direct(detail[2] + projected, params["merge2"]["conv"]["kernel"])
    # Batch statistics are 0 and 1 at first: the norm divides by sqrt(1 + epsilon).
    np.testing.assert_allclose(found, nn.relu(merged / np.sqrt(1 + BatchNorm.epsilon)), atol=1e-5)


def test_bfloat16_keeps_float32_parameters_statistics_and_logits(rng):
    x = rng.normal(size=(2, 64, 64, 2)).astype(np.float32)
    model = HFDNet(classes=3, width=8, dtype=jnp.bfloat16)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    forward = jax.jit(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"]))
    (logits, features), _ = forward(variables)
    assert logits.dtype == jnp.float32 and features["A"].dtype == jnp.bfloat16
    exact, _ = jax.jit(HFDNet(classes=3, width=8).apply)(variables, x)
    rough, _ = jax.jit(model.apply)(variables, x)
    # 8 bits of mantissa through about 25 layers.
    assert float(jnp.abs(exact - rough).max()) < 0.1 * float(jnp.abs(exact).max())


def direct(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=layout)


@pytest.mark.parametrize("scale", [(1, 2), (2, 2), (8, 4)])
def test_convolving_before_upsampling_equals_convolving_after(rng, scale):
    """Holds at the borders too, where the kernel reaches the zero padding, and for the formulation of each platform."""
    x, kernel = rng.normal(size=(2, 3, 5, 4)).astype(np.float32), rng.normal(size=(3, 3, 4, 6)).astype(np.float32)
    shape = (3 * scale[0], 5 * scale[1])
    expected = direct(jax.image.resize(x, (2, *shape, 4), "bilinear"), kernel)
    for platform in ("cpu", "cuda"):
        with compiling_for(platform):
            plain = jax.jit(lambda x, kernel: direct(upsample(x, shape), kernel))(x, kernel)
            found = jax.jit(lambda x, kernel: convolve_upsampled(x, kernel, shape))(x, kernel)
        np.testing.assert_allclose(plain, expected, atol=1e-5)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_joined_convolution_is_a_convolution_of_the_concatenated_maps(rng):
    maps = [rng.normal(size=(2, 8 // s, 8 // s, c)).astype(np.float32) for s, c in ((4, 3), (1, 5), (2, 2))]
    module = JoinedConvolution(6, use_bias=True)
    variables = module.init(jax.random.key(0), maps)
    variables["params"]["bias"] += 0.5
    whole = jnp.concatenate([upsample(x, (8, 8)) for x in maps], -1)
    expected = direct(whole, variables["params"]["kernel"]) + 0.5
    np.testing.assert_allclose(module.apply(variables, maps), expected, atol=1e-5)


def test_max_pool_equals_the_library_in_value_and_gradient(rng):
    x = rng.normal(size=(2, 8, 12, 3)).astype(np.float32)
    weight = rng.normal(size=(2, 4, 6, 3)).astype(np.float32)

    def library(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    np.testing.assert_array_equal(max_pool(x), library(x))
    one, other = (jax.grad(lambda x, f=f: jnp.sum(f(x) * weight))(x) for f in (max_pool, library))
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_equals_the_library_in_value_gradient_and_statistics(rng, train):
    x = (3 + 2 * rng.normal(size=(4, 5, 6, 7))).astype(np.float32)
    own, library = BatchNorm(train), nn.BatchNorm(not train, momentum=0.9)
    variables = library.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda v: v + rng.uniform(0.1, 1, v.shape).astype(np.float32), variables)

    def outcome(module, params, x):
        y, changed = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.sum(y**3), (y, changed)

    found = [
        jax.value_and_grad(lambda p, x, m=m: outcome(m, p, x), argnums=(0, 1), has_aux=True)(variables["params"], x)
        for m in (own, library)
    ]
    # Sums of 840 cubes in float32, in a different order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-3), *found)


@pytest.mark.parametrize("options", [{"depth": 18, "align": "flow"}, {"depth": 50, "context": True}])
def test_folded_variables_compute_the_same(rng, options):
    x = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    model = HFDNet(classes=4, width=4, **options)
    variables = jax.tree.map(
        lambda v: v + 0.1 * rng.uniform(0.1, 1, v.shape).astype(np.float32), model.init(jax.random.key(0), x)
    )
    folded = fold(model, variables)
    assert set(folded) == {"params"} and count(folded) < count(variables)
    one, other = (jax.jit(model.apply)(v, x) for v in (variables, folded))
    scale = float(jnp.abs(one[0]).max())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * scale), one, other)


class Unusual(SegmentationNetwork):
    """A network with a convolution with a bias before one norm, and a norm that does not follow a convolution."""

    title, stem = "unusual", ("first",)
    tap_strides: ClassVar[dict[str, int]] = {"A": 1}

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm(train, name="after")(nn.Conv(4, (3, 3), name="first")(x))
        x = BatchNorm(train, name="alone")(nn.relu(x))
        return nn.Conv(self.classes, (1, 1), name="classifier")(x), {"A": x}


def test_folding_does_not_depend_on_layer_names(rng):
    """Scales a bias too, and leaves a norm unchanged that does not follow a convolution."""
    x = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    model = Unusual(classes=2)
    variables = jax.tree.map(
        lambda v: v + 0.1 * rng.uniform(0.1, 1, v.shape).astype(np.float32), model.init(jax.random.key(0), x)
    )
    folded = fold(model, variables)
    assert set(folded["params"]["after"]) == {"bias"} and set(folded["batch_stats"]) == {"alone"}
    np.testing.assert_allclose(model.apply(folded, x)[0], model.apply(variables, x)[0], rtol=1e-4, atol=1e-5)


class NotFoldable(SegmentationNetwork):
    """Networks in which a convolution before a norm must keep its kernel: `case` says why."""

    title, stem = "not foldable", ("first",)
    tap_strides: ClassVar[dict[str, int]] = {"A": 1}
    case: str = ""

    @nn.compact
    def __call__(self, x, train=False):
        first, norm = nn.Conv(4, (3, 3), name="first"), BatchNorm(train, name="norm")
        y = first(x)
        if self.case == "output read elsewhere":
            y = norm(y) + y
        elif self.case == "norm called twice":
            y = norm(norm(y))
        elif self.case == "convolution called twice":
            y = norm(y) + BatchNorm(train, name="other")(first(2 * x))
        return nn.Conv(self.classes, (1, 1), name="classifier")(y), {"A": y}


@pytest.mark.parametrize("case", ["output read elsewhere", "norm called twice", "convolution called twice"])
def test_a_norm_is_folded_only_where_that_changes_nothing(rng, case):
    x = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    model = NotFoldable(classes=2, case=case)
    variables = jax.tree.map(
        lambda v: v + 0.5 * rng.uniform(0.1, 1, v.shape).astype(np.float32), model.init(jax.random.key(0), x)
    )
    folded = fold(model, variables)
    assert "norm" in folded["batch_stats"]
    np.testing.assert_allclose(model.apply(folded, x)[0], model.apply(variables, x)[0], rtol=1e-5, atol=1e-5)


def test_remat_stores_less_for_the_backward_pass_and_gives_the_same_gradients(rng):
    x = rng.normal(size=(8, 64, 64, 2)).astype(np.float32)
    plain = ResNet(18, 8)
    variables = plain.init(jax.random.key(0), x, False)

    def loss(model, params):
        features, _ = model.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
        return sum(jnp.mean(f**2) for f in features.values())

    stored, gradients = [], []
    for model in (plain, ResNet(18, 8, remat=True)):
        of_model = functools.partial(loss, model)
        everything = count(jax.eval_shape(lambda p, f=of_model: jax.vjp(f, p)[1], variables["params"]))
        stored.append(everything - count(variables["params"]))
        gradients.append(jax.jit(jax.grad(of_model))(variables["params"]))
    assert stored[1] < 0.6 * stored[0]
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest), *gradients)
