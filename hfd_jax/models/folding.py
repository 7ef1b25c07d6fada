"""Folds batch normalisation into the preceding convolutions, so that a frozen network takes fewer operations."""

import collections
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name

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
    """Finds the layers that norms can be folded into, by tracing the network.

    A norm can be folded if its input is the output of a layer with a kernel, if nothing else reads this output, and if
    both are called once. The last axis of the kernel must be that of the output's channels, as in Flax's own layers.

    Returns:
      Path of a BatchNorm -> path of the layer before it.
    """
    params = flatten_dict(variables["params"])
    bands = params[(*model.stem, "kernel")].shape[-2]
    layer_of: dict[int, Path] = {}
    pairs: dict[Path, Path] = {}
    calls: collections.Counter[Path] = collections.Counter()
    outputs = []  # keeps the traced arrays alive, so that no id is used twice

    def record(call, args, kwargs, context):
        path = context.module.path
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        calls[path] += 1
        if isinstance(context.module, BatchNorm) and id(args[0]) in layer_of:
            pairs[path] = layer_of[id(args[0])]
        output = call(*args, **kwargs)
        if (*path, "kernel") in params:
            output = checkpoint_name(output, "/".join(path))  # found again in the traced program
            outputs.append(output)
            layer_of[id(output)] = path
        return output

    def trace(variables, image):
        with nn.intercept_methods(record):
            return model.apply(variables, image, train=False)

    program = jax.make_jaxpr(trace)(variables, jnp.zeros((1, 64, 64, bands)))
    read_once = {name for name, count in _readers(program.jaxpr).items() if count == 1}
    return {
        norm: layer
        for norm, layer in pairs.items()
        if calls[norm] == calls[layer] == 1 and "/".join(layer) in read_once
    }


def _readers(program: Any) -> collections.Counter[str]:
    """Number of operations that read each array named by `checkpoint_name`, in a jaxpr and those inside it."""
    counts: collections.Counter[str] = collections.Counter()
    reads = collections.Counter(id(var) for equation in program.eqns for var in equation.invars)
    reads.update(id(var) for var in program.outvars)
    for equation in program.eqns:
        if equation.primitive.name == "name":
            counts[equation.params["name"]] += reads[id(equation.outvars[0])]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                counts += _readers(inner)
    return counts
