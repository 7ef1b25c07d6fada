"""Converts ResNets with the parameter names of torchvision and timm, which are the same, to this project's layout.

Operates on dicts of NumPy arrays and does not need PyTorch.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hfd_jax.core.trees import listed, shape_differences
from hfd_jax.models.resnet import DEPTHS, ResNet

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_MODULES = ((r"layer(\d)_(\d+)", r"layer\1.\2"), ("downsample_conv", "downsample.0"), ("downsample_bn", "downsample.1"))
_ANCHOR = "layer1.0.conv1.weight"  # present in every ResNet
# MoCo's checkpoints hold the trained network and a moving average of it; the former is used.
_TRAINED = ("encoder_q.", "base_encoder.")
_CLASSIFIER, _COUNTER = "fc.", ".num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Found:
    """A ResNet found in a checkpoint.

    Attributes:
      variables: {"params", "batch_stats"} of `models.resnet.ResNet`, float32.
      depth, width: see `models.resnet.ResNet`.
      bands: number of input bands.
      prefix: prefix of its parameter names, for example "state_dict.module.encoder_q.".
      left_out: names of all other arrays in the checkpoint, except the counters of BatchNorms.
    """

    variables: dict[str, Any]
    depth: int
    width: int
    bands: int
    prefix: str
    left_out: list[str]


def torch_name(path: Iterable[str]) -> str:
    """("layer1_0", "downsample_bn", "scale") -> "layer1.0.downsample.1.weight"."""
    *modules, leaf = path
    for pattern, replacement in _MODULES:
        modules = [re.sub(f"^{pattern}$", replacement, module) for module in modules]
    return ".".join((*modules, _LEAVES[leaf]))


def take_resnet(arrays: Mapping[str, np.ndarray], depth: int | None = None, prefix: str | None = None) -> Found:
    """Finds the ResNet in a checkpoint and converts it to this project's layout (kernels from OIHW to HWIO).

    Leaves out its classifier (fc), the counters of its BatchNorms and everything outside the ResNet (heads, queues,
    optimiser state). All other parameters must match.

    Args:
      arrays: name -> array; names of nested dicts are joined with dots.
      depth: 18, 34, 50 or 101; None infers it from the number of blocks.
      prefix: prefix of its names, to choose one of several ResNets; None searches for it.

    Raises:
      ValueError: If there is no ResNet or more than one, if it is an unsupported variant, or if parameters are missing,
        unexpected, of the wrong shape or not finite; the message names them.
    """
    prefix = _find(arrays, prefix)
    inside = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    left_out = [name for name in arrays if not (name.startswith(prefix) or name.endswith(_COUNTER))]
    left_out += [prefix + name for name in inside if name.startswith(_CLASSIFIER)]
    inside = {k: v for k, v in inside.items() if not (k.startswith(_CLASSIFIER) or k.endswith(_COUNTER))}
    _refuse_other_kinds(inside)
    depth = depth or _depth(inside)
    stem = inside.get("conv1.weight", np.zeros(0))
    width, bands = stem.shape[:2] if stem.ndim == 4 else (inside[_ANCHOR].shape[0], 3)
    shapes = encoder_shapes(depth, width, bands)
    wanted = {_name(path): _torch_shape(leaf) for path, leaf in jax.tree.leaves_with_path(shapes)}
    problems = shape_differences(wanted, inside)
    if problems:
        raise ValueError(f"not a ResNet-{depth} with the names of torchvision and timm: {listed(problems)}")
    variables = jax.tree.map_with_path(lambda path, _: _converted(inside[_name(path)]), shapes)
    for path, leaf in jax.tree.leaves_with_path(variables):
        if not np.isfinite(leaf).all():
            raise ValueError(f"{prefix}{_name(path)} contains values that are not finite")
    return Found(variables, depth, width, bands, prefix, sorted(left_out))


def encoder_shapes(depth: int, width: int, bands: int) -> dict[str, Any]:
    """Returns the shapes of a ResNet's variables, {"params", "batch_stats"}."""
    image = jax.ShapeDtypeStruct((1, 64, 64, bands), jnp.float32)
    return jax.eval_shape(lambda x: ResNet(depth, width).init(jax.random.key(0), x, False), image)


def _find(names: Collection[str], prefix: str | None) -> str:
    """Returns the prefix of the ResNet's names."""
    found = sorted(name.removesuffix(_ANCHOR) for name in names if f".{name}".endswith(f".{_ANCHOR}"))
    if not found:
        some = ", ".join(sorted(names)[:5]) or "nothing"
        raise ValueError(f"contains no ResNet: expected names that end in {_ANCHOR}, found {some}")
    if prefix is not None:
        chosen = [one for one in found if one.rstrip(".") == prefix.rstrip(".")]
    else:
        chosen = found if len(found) == 1 else [one for one in found if one.endswith(_TRAINED)]
    if len(chosen) != 1:
        raise ValueError(f"choose one of its ResNets with --prefix: {', '.join(map(repr, found))}")
    return chosen[0]


def _refuse_other_kinds(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError for known variants with an explanation, instead of a list of missing parameters."""
    if any(re.match(r"conv1\.\d", name) for name in arrays):
        raise ValueError(
            "its stem has three 3x3 convolutions (conv1.0, conv1.3, ..., as in timm's resnet18d or resnet50c); "
            "expected the standard 7x7 convolution. Choose a variant without a letter, such as resnet18"
        )
    if any(name.endswith("downsample.1.weight") and array.ndim == 4 for name, array in arrays.items()):
        raise ValueError(
            "its shortcuts pool before their convolution (downsample.0 has no parameters, as in timm's variants with "
            "'d'); expected strided convolutions. Choose a variant without a letter, such as resnet18"
        )


def _depth(names: Collection[str]) -> int:
    blocks = [0] * 4
    for name in names:
        if match := re.match(r"layer([1-4])\.(\d+)\.", name):
            stage = int(match[1]) - 1
            blocks[stage] = max(blocks[stage], int(match[2]) + 1)
    bottleneck = "layer1.0.conv3.weight" in names
    for depth, expected in DEPTHS.items():
        if tuple(blocks) == expected and bottleneck == (depth >= 50):
            return depth
    kind = "of three convolutions" if bottleneck else "of two convolutions"
    known = "; ".join(f"ResNet-{depth}: {', '.join(map(str, counts))}" for depth, counts in DEPTHS.items())
    raise ValueError(
        f"its stages have {', '.join(map(str, blocks))} blocks {kind}; expected {known} (three convolutions from "
        "ResNet-50 on). Set --depth to list the missing and unexpected parameters"
    )


def _name(path: Sequence[Any]) -> str:
    """Returns the torchvision name of a leaf of the variables; the first key of its path is the collection."""
    return torch_name(key.key for key in path[1:])


def _torch_shape(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    height_first = len(leaf.shape) == 4
    return jax.ShapeDtypeStruct(tuple(leaf.shape[i] for i in (3, 2, 0, 1)) if height_first else leaf.shape, leaf.dtype)


def _converted(array: np.ndarray) -> np.ndarray:
    """Converts an array to float32, a kernel from OIHW to HWIO."""
    array = np.asarray(array, np.float32)
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)
