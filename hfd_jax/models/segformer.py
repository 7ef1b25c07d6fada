"""SegFormer-B0: a hierarchical transformer encoder and a decoder of linear layers.

Xie et al. 2021, "SegFormer: simple and efficient design for semantic segmentation with transformers": overlapping patch
embeddings, self-attention with keys and values from a downsampled map, and feed-forward layers with a depthwise 3x3
convolution in place of a positional encoding. Left out: stochastic depth and dropout.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from hfd_jax.core.options import option
from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.layers import BatchNorm, DepthwiseConvolution, JoinedConvolution, classify, convolution

TAPS = ("C2", "C3", "C4", "C5")
BLOCKS = 2  # blocks per stage
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)  # downsampling of the keys and values, per axis
linear_init = nn.initializers.truncated_normal(0.02)


class Attention(nn.Module):
    """Multi-head self-attention over all positions of x [B, h, w, C], with keys and values from a downsampled map."""

    heads: int
    reduction: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        context = x
        if self.reduction > 1:
            size = (self.reduction, self.reduction)
            context = nn.Conv(channels, size, size, "VALID", dtype=self.dtype, name="reduce")(x)
            context = nn.LayerNorm(1e-5, dtype=self.dtype, name="norm")(context)
        attention = nn.MultiHeadDotProductAttention(
            self.heads, self.dtype, kernel_init=linear_init, force_fp32_for_softmax=True, name="attention"
        )
        y = attention(x.reshape(batch, -1, channels), context.reshape(batch, -1, channels))
        return y.reshape(batch, height, width, channels)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)) with a depthwise convolution in the feed-forward part."""

    heads: int
    reduction: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        y = nn.LayerNorm(1e-6, dtype=self.dtype, name="norm1")(x)
        x += Attention(self.heads, self.reduction, self.dtype, name="attention")(y)
        y = nn.LayerNorm(1e-6, dtype=self.dtype, name="norm2")(x)
        y = nn.Dense(4 * channels, dtype=self.dtype, kernel_init=linear_init, name="expand")(y)
        y = DepthwiseConvolution(use_bias=True, dtype=self.dtype, name="mix")(y)
        y = nn.gelu(y, approximate=False)
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=linear_init, name="reduce")(y)


class SegFormer(SegmentationNetwork):
    """`width` is the number of channels of the second stage; width 64 gives stages of 32, 64, 160 and 256 channels."""

    title: ClassVar[str] = "SegFormer-B0"
    tap_strides: ClassVar[dict[str, int]] = {"C2": 4, "C3": 8, "C4": 16, "C5": 32, "A": 4}
    stem: ClassVar[tuple[str, ...]] = ("embed1",)
    sees_all: ClassVar[bool] = True

    width: int = option(64, "channels of the second stage, even; 64 is the published size", above=0)

    @classmethod
    def problems(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().problems(values)
        if values["width"] % 2:
            yield "width", "expected an even number, since the first stage of segformer_b0 has half as many channels"

    @nn.compact
    def __call__(self, x, train: bool = False):
        block = nn.remat(TransformerBlock) if self.remat else TransformerBlock
        shape, x, features = x.shape[1:3], x.astype(self.dtype), {}
        for stage, (tap, heads, reduction) in enumerate(zip(TAPS, HEADS, REDUCTIONS, strict=True), 1):
            kernel, stride = (7, 4) if stage == 1 else (3, 2)
            channels = heads * self.width // 2
            x = convolution(channels, kernel, stride, dtype=self.dtype, use_bias=True, name=f"embed{stage}")(x)
            x = nn.LayerNorm(1e-5, dtype=self.dtype, name=f"embed_norm{stage}")(x)
            for index in range(BLOCKS):
                x = block(heads, reduction, self.dtype, name=f"block{stage}_{index}")(x)
            x = features[tap] = nn.LayerNorm(1e-6, dtype=self.dtype, name=f"norm{stage}")(x)
        maps = [
            nn.Dense(4 * self.width, dtype=self.dtype, kernel_init=linear_init, name=f"linear_{tap}")(features[tap])
            for tap in TAPS
        ]
        joined = JoinedConvolution(4 * self.width, dtype=self.dtype, kernel=1, name="project")(maps)
        joined = nn.relu(BatchNorm(train, self.dtype, name="bn")(joined))
        return classify(joined, self.classes, shape, self.dtype), {**features, "A": joined}
