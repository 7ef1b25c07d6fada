"""Layers shared by the networks."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hfd_jax.core.collectives import global_mean
from hfd_jax.models.upsampling import convolve_upsampled, upsample


def he_normal(fan_axis: int) -> Callable:
    """Initialiser of He et al. (2015): normal with variance 2 / fan, as variance_scaling(2.0, ..., "normal").

    It draws the same numbers, but as a vector: XLA on the CPU compiles that three times faster than a draw with several
    axes, and a network has dozens of them.

    Args:
      fan_axis: axis of the kernel [..., in, out] that counts for the fan: -2 (fan in) or -1 (fan out).
    """

    def initialise(key, shape, dtype=jnp.float32):
        fan = math.prod(shape[:-2]) * shape[fan_axis]
        draw = jax.random.normal(key, (math.prod(shape),), dtype) * jnp.sqrt(jnp.array(2.0 / fan, dtype))
        return draw.reshape(shape)

    return initialise


kernel_init = he_normal(fan_axis=-1)
depthwise_init = he_normal(fan_axis=-2)


def convolution(
    features: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    *,
    dtype: Any = jnp.float32,
    use_bias: bool = False,
    **kwargs,
):
    """A square convolution with `kernel // 2 * dilation` zeros on each side (SAME would shift strided maps)."""
    pad = kernel // 2 * dilation
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        kernel_dilation=dilation,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kwargs.pop("kernel_init", kernel_init),
        conv_general_dilated=_convolve_any,
        **kwargs,
    )


def _convolve_any(x, kernel, strides, padding, *, rhs_dilation, **options):
    """`jax.lax.conv_general_dilated`; as one matrix product where the result is smaller than the kernel.

    Deep stages have such maps on small crops; on the CPU, XLA's convolution of them is many times slower.
    """
    size, sizes = kernel.shape[0], x.shape[1:3]
    small = size > 1 and max((n - 1) // s + 1 for n, s in zip(sizes, strides, strict=True)) < size
    same = list(padding) == [(size // 2, size // 2)] * 2 and set(rhs_dilation) == {1} and size % 2
    if small and same and options["feature_group_count"] == 1:
        return _as_product(x, kernel, strides)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=rhs_dilation, **options)


def _as_product(x, kernel, strides):
    """Convolves x with zero padding by multiplying its k x k neighbourhoods with the kernel."""
    size, channels, pad = kernel.shape[0], x.shape[-1], kernel.shape[0] // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = x.shape[1:3]
    patches = [
        padded[:, i : i + height : strides[0], j : j + width : strides[1]] for i in range(size) for j in range(size)
    ]
    return jnp.concatenate(patches, -1) @ kernel.reshape(size * size * channels, -1)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) over all axes but the channels, with standard epsilon and momentum.

    Has the same parameters, statistics and results as `nn.BatchNorm`. It is written as x * a + b, whose gradient
    shortens a training step of the encoder by a seventh on the CPU. After folding (`folding.fold`) the layer has only a
    bias, which it adds.

    Attributes:
      train: whether to use the statistics of the batch and update the running ones; otherwise uses the running ones.
      dtype: dtype of the result; statistics and parameters are float32.
    """

    train: bool
    dtype: Any = jnp.float32
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x):
        shape = x.shape[-1:]
        bias = self.param("bias", nn.initializers.zeros, shape)
        if not self.is_initializing() and not self.has_variable("batch_stats", "mean"):
            return (x + bias).astype(self.dtype)
        scale = self.param("scale", nn.initializers.ones, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        mean, var = running_mean.value, running_var.value
        if self.train:
            mean, var = self._of_batch(x.astype(jnp.float32))
            if not self.is_initializing():
                running_mean.value += (1 - self.momentum) * (mean - running_mean.value)
                running_var.value += (1 - self.momentum) * (var - running_var.value)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)

    def _of_batch(self, x):
        axes = tuple(range(x.ndim - 1))
        mean, square = x.mean(axes), (x * x).mean(axes)
        mean, square = global_mean((mean, square))
        return mean, jnp.maximum(square - mean * mean, 0.0)


class ConvBN(nn.Module):
    """Convolution, batch normalisation, activation.

    Attributes:
      features, kernel, stride, dilation: see `convolution`.
      transposed: whether to use a `TransposedConvolution`, which doubles the size of the map.
      activation: function applied at the end.
      dtype: see `BatchNorm`.
    """

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    transposed: bool = False
    activation: Callable = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        if self.transposed:
            conv = TransposedConvolution(self.features, self.kernel, dtype=self.dtype, name="conv")
        else:
            conv = convolution(self.features, self.kernel, self.stride, self.dilation, dtype=self.dtype, name="conv")
        return self.activation(BatchNorm(train, self.dtype, name="bn")(conv(x)))


class DepthwiseConvolution(nn.Module):
    """Depthwise 3x3 convolution with zero padding.

    Has the parameters of an `nn.Conv` with as many groups as channels. Computed by summing maps shifted along one axis,
    then along the other: on the CPU, `nn.Conv` with groups and its gradient take at least ten times as long.

    Attributes:
      dilation, use_bias, dtype: see `convolution`.
    """

    dilation: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        (_, height, width, channels), step = x.shape, self.dilation
        kernel = self.param("kernel", depthwise_init, (3, 3, 1, channels))
        padded = jnp.pad(x, ((0, 0), (step, step), (step, step), (0, 0)))
        shifted = [padded[:, :, j * step : j * step + width] for j in range(3)]
        rows = [sum(x * kernel[i, j, 0] for j, x in enumerate(shifted)) for i in range(3)]
        y = sum(row[:, i * step : i * step + height] for i, row in enumerate(rows))
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (channels,))
        return y.astype(self.dtype)


class TransposedConvolution(nn.Module):
    """Transposed convolution of stride 2: [B, h, w, C] -> [B, 2h, 2w, features]; kernel size 2, 3 or 4.

    In PyTorch's terms, padding is (k - 1) // 2 and output padding k % 2. Has the parameters of `nn.ConvTranspose`.
    Computed as one convolution of the small map that yields the four output pixels of each position: on the CPU, the
    gradient of `nn.ConvTranspose` takes five to ten times as long.

    Attributes:
      features, kernel, use_bias, dtype: see `convolution`.
    """

    features: int
    kernel: int
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        batch, h, w, channels = x.shape
        kernel = self.param("kernel", kernel_init, (self.kernel, self.kernel, channels, self.features))
        spread = _spread(self.kernel)
        size = len(spread)
        kernel = jnp.einsum("rai,sbj,ijcd->rscabd", spread, spread, kernel).reshape(size, size, channels, -1)
        y = _convolve(x.astype(self.dtype), kernel.astype(self.dtype)).reshape(batch, h, w, 2, 2, self.features)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * h, 2 * w, self.features)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


def _spread(kernel: int):
    """[1 or 3, 2, kernel]: 1 if output pixel 2 i + a reads input i + r - r_max at kernel position t, else 0."""
    before = kernel - 1 - (kernel - 1) // 2
    shift = np.array([[(a + t - before) / 2 for t in range(kernel)] for a in range(2)])
    reach = int(max(abs(s) for s in shift.flat if s == int(s)))
    return np.stack([shift == r for r in range(-reach, reach + 1)]).astype(np.float32)


def _convolve(x, kernel):
    """Convolves x with zero padding that keeps its size."""
    pad = kernel.shape[0] // 2
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((pad, pad), (pad, pad)), dimension_numbers=layout)


def max_pool(x):
    """3x3 max pooling with stride 2 and padding 1: [B, H, W, C] -> [B, H/2, W/2, C]; H and W must be even.

    Computed along one axis after the other as maxima of slices: on the CPU, the gradient of `nn.max_pool` takes 15
    times as long. Ties share the gradient.
    """

    def along(x, axis):
        pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        even, odd = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
        border = [(0, 0, 0)] * x.ndim
        border[axis] = (1, -1, 0)
        before = jax.lax.pad(odd, jnp.array(-jnp.inf, x.dtype), border)
        return jnp.maximum(jnp.maximum(before, even), odd)

    return along(along(x, 1), 2)


def max_pool_2x2(x):
    """2x2 max pooling with stride 2: [B, H, W, C] -> [B, H/2, W/2, C]; H and W must be even.

    Computed from slices for the same reason as `max_pool`; ties share the gradient.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def mean_pool_2x2(x):
    """2x2 mean pooling with stride 2: [B, H, W, C] -> [B, H/2, W/2, C] of x's dtype; H and W must be even."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4)).astype(x.dtype)


def classify(x, classes: int, shape, dtype: Any):
    """Classifies x with a 1x1 convolution, "classifier" in the calling module; float32 logits upsampled to `shape`."""
    logits = convolution(classes, 1, dtype=dtype, use_bias=True, name="classifier")(x)
    return upsample(logits.astype(jnp.float32), shape)


class JoinedConvolution(nn.Module):
    """Convolves several maps as if they were upsampled to the size of the largest one and concatenated.

    Has the parameters of an `nn.Conv` over the concatenated maps.

    Attributes:
      features: channels of the result.
      use_bias, dtype, kernel_init: see `convolution`.
      kernel: edge of the kernel; must be odd.
    """

    features: int
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: Any = kernel_init
    kernel: int = 3

    @nn.compact
    def __call__(self, maps):
        """[[B, H, W, C0], [B, h, w, C1], ...] in any order of sizes -> [B, H, W, features]."""
        channels = [x.shape[-1] for x in maps]
        shape = (self.kernel, self.kernel, sum(channels), self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        parts, shape = jnp.split(kernel, np.cumsum(channels)[:-1], 2), max(x.shape[1:3] for x in maps)
        y = sum(self._one(x.astype(self.dtype), part, shape) for x, part in zip(maps, parts, strict=True))
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y

    def _one(self, x, kernel, shape):
        return _convolve(x, kernel) if x.shape[1:3] == shape else convolve_upsampled(x, kernel, shape)
