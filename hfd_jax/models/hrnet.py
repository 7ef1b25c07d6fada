"""HRNet: four parallel branches of different resolution that exchange features; the variant HRNetV2-W18-Small-v2.

Wang et al. 2021, "Deep high-resolution representation learning for visual recognition", with the numbers of blocks and
modules of the authors' `seg_hrnet_w18_small_v2`.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from hfd_jax.core.options import option
from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.layers import BatchNorm, ConvBN, JoinedConvolution, classify
from hfd_jax.models.resnet import Block
from hfd_jax.models.upsampling import upsample

BLOCKS = 2  # blocks per branch and module, and in the first stage
MODULES = (1, 3, 2)  # modules in the stages with two, three and four branches
TAPS = ("C2", "C3", "C4", "C5")


def identity(x):
    return x


class Exchange(nn.Module):
    """Applies residual blocks in each branch, then adds to each branch the resampled maps of all others.

    Attributes:
      channels: channels of the branches, from fine to coarse; each branch halves the resolution of the previous one.
      dtype: computation dtype.
    """

    channels: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps, train: bool):
        options = {"dtype": self.dtype}
        maps = list(maps)
        for branch, channels in enumerate(self.channels):
            for index in range(BLOCKS):
                block = Block(channels, 1, bottleneck=False, name=f"branch{branch}_{index}", **options)
                maps[branch] = block(maps[branch], train)
        return [
            nn.relu(sum(self._resampled(maps, source, target, train) for source in range(len(maps))))
            for target in range(len(maps))
        ]

    def _resampled(self, maps, source: int, target: int, train: bool):
        """Converts the map of branch `source` to the size and channels of branch `target`."""
        options = {"dtype": self.dtype}
        x, name = maps[source], f"from{source}_to{target}"
        if source > target:
            x = ConvBN(self.channels[target], 1, activation=identity, name=name, **options)(x, train)
            return upsample(x, maps[target].shape[1:3])
        for level in range(source + 1, target + 1):
            last = level == target
            channels, activation = (self.channels[target], identity) if last else (self.channels[source], nn.relu)
            conv = ConvBN(channels, 3, 2, activation=activation, name=f"{name}_{level}", **options)
            x = conv(x, train)
        return x


class HRNet(SegmentationNetwork):
    """With width 64 the branches have 18, 36, 72 and 144 channels; other widths scale them in proportion."""

    title: ClassVar[str] = "HRNet"
    tap_strides: ClassVar[dict[str, int]] = {"C2": 4, "C3": 8, "C4": 16, "C5": 32, "A": 4}
    stem: ClassVar[tuple[str, ...]] = ("stem0", "conv")

    width: int = option(64, "channels of the first stage; 64 is the standard (published) size", above=0)

    @nn.compact
    def __call__(self, x, train: bool = False):
        options = self.options
        exchange = nn.remat(Exchange, static_argnums=(2,)) if self.remat else Exchange
        shape, x = x.shape[1:3], x.astype(self.dtype)
        for index in range(2):
            x = ConvBN(self.width, 3, 2, name=f"stem{index}", **options)(x, train)
        for index in range(BLOCKS):
            x = Block(self.width, 1, bottleneck=True, name=f"first_{index}", **options)(x, train)
        channels = tuple(max(round(18 * self.width / 64), 1) * 2**branch for branch in range(4))
        maps = [ConvBN(channels[0], 3, name="enter0", **options)(x, train)]
        for branch, modules in enumerate(MODULES, 1):
            coarsest = maps[-1] if branch > 1 else x
            maps.append(ConvBN(channels[branch], 3, 2, name=f"enter{branch}", **options)(coarsest, train))
            for index in range(modules):
                maps = exchange(channels[: branch + 1], name=f"stage{branch + 1}_{index}", **options)(maps, train)
        joined = JoinedConvolution(sum(channels), dtype=self.dtype, kernel=1, name="project")(maps)
        joined = nn.relu(BatchNorm(train, name="bn", **options)(joined))
        return classify(joined, self.classes, shape, self.dtype), {**dict(zip(TAPS, maps, strict=True)), "A": joined}
