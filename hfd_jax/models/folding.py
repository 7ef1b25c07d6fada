"""Folds batch normalisation into the preceding convolutions, so that a frozen network takes fewer operations."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.layers import BatchNorm

Path = tuple[str, ...]


def fold(model: SegmentationNetwork, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns variables that give the same results in inference with fewer operations.

    kernel' = kernel * scale / sqrt(var + epsilon), bias' = bias - mean * scale / sqrt(var + epsilon); float32. A norm
    whose input is not the output of a convolution keeps its statistics.

    Args:
      model: the network.
      variables: {"params", "batch_stats"} of the network.
    """
    params, statistics = (flatten_dict(variables[name]) for name in ("params", "batch_stats"))
    for norm, layer in convolutions_before_norms(model, variables).items():
        scale, bias = params.pop((*norm, "scale")), params[(*norm, "bias")]
        mean, var = (statistics.pop((*norm, name)) for name in ("mean", "var"))
        factor = scale * jax.lax.rsqrt(var + BatchNorm.epsilon)
        for name in {"kernel", "bias"} & {path[-1] for path in params if path[:-1] == layer}:
            params[(*layer, name)] = params[(*layer, name)] * factor
        params[(*norm, "bias")] = bias - mean * factor
    folded = {"params": unflatten_dict(params)}
    return folded | {"batch_stats": unflatten_dict(statistics)} if statistics else folded


def convolutions_before_norms(model: SegmentationNetwork, variables: Mapping[str, Any]) -> dict[Path, Path]:
    """Maps the path of each BatchNorm to the path of the layer with a kernel that precedes it, by tracing the network.

    The last axis of such a kernel must be that of the output channels, as in Flax's own layers.
    """
    params = flatten_dict(variables["params"])
    bands = params[(*model.stem, "kernel")].shape[-2]
    sources: dict[int, Path] = {}  # id of an array -> path of the layer that returned it
    pairs: dict[Path, Path] = {}
    alive = []  # keeps the traced arrays alive, so that no id is reused

    def record(call, args, kwargs, context):
        path = context.module.path
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__" and id(args[0]) in sources:
            pairs[path] = sources[id(args[0])]
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and (*path, "kernel") in params:
            alive.append(output)
            sources[id(output)] = path
        return output

    def trace(variables, image):
        with nn.intercept_methods(record):
            return model.apply(variables, image, train=False)

    jax.eval_shape(trace, variables, jax.ShapeDtypeStruct((1, 64, 64, bands), jnp.float32))
    return pairs
