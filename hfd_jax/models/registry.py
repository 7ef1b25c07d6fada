"""The architectures by name: HFD-Net's own, and segmentation networks to compare it with. One line for a new one."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from hfd_jax.core import options
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

ARCHITECTURES: dict[str, type[SegmentationNetwork]] = {
    DEFAULT: Segmenter,
    "fcn": FCN,
    "unet": UNet,
    "deeplabv3plus": DeepLabV3Plus,
    "pspnet": PSPNet,
    "hrnet": HRNet,
    "hrsarnet": HRSARNet,
    "mpresnet": MPResNet,
    "segformer_b0": SegFormer,
}


def default_options() -> dict[str, Any]:
    """The options of all architectures with their defaults: the fields of config.model beside `architecture`.

    Architectures may share an option, which then has one default for all of them.
    """
    found: dict[str, Any] = {}
    for network in ARCHITECTURES.values():
        for name, default in options.defaults(network).items():
            if found.setdefault(name, default) != default:
                raise ValueError(f"{network.__name__}.{name} defaults to {default!r}, elsewhere to {found[name]!r}")
    return found


def build(description: Mapping[str, Any], pool_size: int = 0, **common: Any) -> SegmentationNetwork:
    """Builds a network from {"architecture": name, option: value}; without a name, of the default architecture.

    Args:
      description: the architecture and its options.
      pool_size: edge of the training crop, pixels, for an architecture that has this attribute.
      **common: classes, dtype, remat.
    """
    # A checkpoint's record, which is JSON, has lists.
    fields = {field: tuple(value) if isinstance(value, list) else value for field, value in description.items()}
    network = ARCHITECTURES[fields.pop("architecture", DEFAULT)]
    if "pool_size" in network.__dataclass_fields__:
        fields["pool_size"] = pool_size
    return network(**fields, **common)
