"""The architectures by name: the one that HFD-Net is built on, and segmentation networks to compare it with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.deeplab import DeepLabV3Plus
from hfd_jax.models.fcn import FCN
from hfd_jax.models.hfdnet import Segmenter
from hfd_jax.models.hrnet import HRNet
from hfd_jax.models.hrsarnet import HRSARNet
from hfd_jax.models.mpresnet import MPResNet
from hfd_jax.models.pspnet import PSPNet
from hfd_jax.models.segformer import SegFormer
from hfd_jax.models.unet import UNet

DEFAULT = "hfdnet"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_COMMON = ("classes", "dtype", "remat", "parent", "name")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network that can be trained alone, teach, or be taught.

    Attributes:
      title: for tables.
      network: its class.
    """

    title: str
    network: type[SegmentationNetwork]

    @property
    def fields(self) -> dict[str, Any]:
        """What it can be told beside what all of them can, with the defaults."""
        return {f.name: f.default for f in dataclasses.fields(self.network) if f.name not in _COMMON}

    @property
    def tap_strides(self) -> dict[str, int]:
        return self.network.tap_strides


ARCHITECTURES = {
    DEFAULT: Architecture("HFD-Net", Segmenter),
    "fcn": Architecture("FCN", FCN),
    "unet": Architecture("U-Net", UNet),
    "deeplabv3plus": Architecture("DeepLabV3+", DeepLabV3Plus),
    "pspnet": Architecture("PSPNet", PSPNet),
    "hrnet": Architecture("HRNet", HRNet),
    "hrsarnet": Architecture("HR-SARNet", HRSARNet),
    "mpresnet": Architecture("MP-ResNet", MPResNet),
    "segformer_b0": Architecture("SegFormer-B0", SegFormer),
}


def build(description: Mapping[str, Any], pool_size: int = 0, **common: Any) -> SegmentationNetwork:
    """A network from {"architecture": name, field: value}; without a name it is the default one.

    Args:
      description: fields as of `Architecture.fields`.
      pool_size: of a `Segmenter`, pixels; the others have no use for it.
      **common: classes, dtype, remat.
    """
    # A checkpoint's record, which is JSON, has lists.
    fields = {field: tuple(value) if isinstance(value, list) else value for field, value in description.items()}
    network = ARCHITECTURES[fields.pop("architecture", DEFAULT)].network
    if "pool_size" in network.__dataclass_fields__:
        fields["pool_size"] = pool_size
    return network(**fields, **common)
