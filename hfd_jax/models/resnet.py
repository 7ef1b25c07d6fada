"""ResNet encoder with the layout of the standard implementation, so that its published weights can be brought in.

He et al. 2016, "Deep residual learning for image recognition"; in bottlenecks the stride sits in the 3x3 convolution
(the variant known as v1.5).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STAGES = ("C2", "C3", "C4", "C5")
STRIDES = {"C2": 4, "C3": 8, "C4": 16, "C5": 32}


def convolution(
    features: int, kernel: int, stride: int = 1, *, dtype: Any = jnp.float32, use_bias: bool = False, **kwargs
):
    """A square convolution, `kernel // 2` zeros of padding on every side (SAME would shift strided maps)."""
    pad = kernel // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kwargs.pop("kernel_init", nn.initializers.variance_scaling(2.0, "fan_out", "normal")),
        **kwargs,
    )


def batch_norm(train: bool, dtype: Any, axis_name: str | None, **kwargs):
    """BatchNorm with the standard epsilon and momentum; statistics and parameters stay float32."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=axis_name if train else None,
        **kwargs,
    )


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1 - 3x3 - 1x1 with a fourfold widening when `bottleneck`."""

    features: int
    stride: int
    bottleneck: bool
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool):
        conv = partial(convolution, dtype=self.dtype)
        norm = partial(batch_norm, train, self.dtype, self.axis_name)
        out = self.features * (4 if self.bottleneck else 1)
        if self.bottleneck:
            y = nn.relu(norm(name="bn1")(conv(self.features, 1, name="conv1")(x)))
            y = nn.relu(norm(name="bn2")(conv(self.features, 3, self.stride, name="conv2")(y)))
            y = norm(name="bn3")(conv(out, 1, name="conv3")(y))
        else:
            y = nn.relu(norm(name="bn1")(conv(out, 3, self.stride, name="conv1")(x)))
            y = norm(name="bn2")(conv(out, 3, name="conv2")(y))
        if x.shape != y.shape:
            x = norm(name="downsample_bn")(conv(out, 1, self.stride, name="downsample_conv")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Encoder: [B, H, W, bands] -> {"C2": [B, H/4, W/4, .], "C3": H/8, "C4": H/16, "C5": H/32}.

    Attributes:
      depth: 18, 34, 50 or 101.
      width: channels of the first stage (64 is the standard network).
      dtype: of the computation; parameters are float32.
      axis_name: pmap axis over which the batch statistics are averaged; None under jit.
    """

    depth: int = 18
    width: int = 64
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool):
        x = convolution(self.width, 7, 2, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(batch_norm(train, self.dtype, self.axis_name, name="bn1")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        features = {}
        for stage, (name, blocks) in enumerate(zip(STAGES, DEPTHS[self.depth], strict=True)):
            for block in range(blocks):
                x = Block(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    bottleneck=self.depth >= 50,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"layer{stage + 1}_{block}",
                )(x, train)
            features[name] = x
        return features
