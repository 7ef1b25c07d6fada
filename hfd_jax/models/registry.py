"""The architectures by name: HFD-Net and networks to compare it with. A new architecture takes one line here."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from hfd_jax.core import options
from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.deeplab import DeepLabV3Plus
from hfd_jax.models.fcn import FCN
from hfd_jax.models.hfdnet import HFDNet
from hfd_jax.models.hrnet import HRNet
from hfd_jax.models.hrsarnet import HRSARNet
from hfd_jax.models.mpresnet import MPResNet
from hfd_jax.models.pspnet import PSPNet
from hfd_jax.models.segformer import SegFormer
from hfd_jax.models.unet import UNet

DEFAULT = "hfdnet"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

ARCHITECTURES: dict[str, type[SegmentationNetwork]] = {
    DEFAULT: HFDNet,
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
    """Returns the options of all architectures with their defaults: the fields of config.model except `architecture`.

    Architectures may share an option, which must then have the same default in all of them.
    """
    found: dict[str, Any] = {}
    for network in ARCHITECTURES.values():
        for name, default in options.defaults(network).items():
            if found.setdefault(name, default) != default:
                raise ValueError(
                    f"{network.__name__}.{name} has the default {default!r}; another architecture has {found[name]!r}"
                )
    return found


def implied_options() -> dict[str, Any]:
    """As `default_options`, with what a config that lacks the option implies (`Option.before`)."""
    return {name: value for network in ARCHITECTURES.values() for name, value in options.implied(network).items()}


def build(description: Mapping[str, Any], pool_size: int = 0, **common: Any) -> SegmentationNetwork:
    """Builds a network from {"architecture": name, option: value}.

    Args:
      description: the architecture (default: DEFAULT) and its options.
      pool_size: edge of the training crop in pixels; only for architectures with this attribute.
      **common: classes, dtype, remat.
    """
    # A checkpoint's record is JSON and has lists in place of tuples.
    fields = {field: tuple(value) if isinstance(value, list) else value for field, value in description.items()}
    network = ARCHITECTURES[fields.pop("architecture", DEFAULT)]
    if "pool_size" in network.__dataclass_fields__:
        fields["pool_size"] = pool_size
    return network(**fields, **common)
