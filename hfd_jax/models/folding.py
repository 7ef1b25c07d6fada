"""Folds batch statistics into the convolutions before them: a frozen network computes the same with less."""

import re
from collections.abc import Mapping
from typing import Any

import jax

from hfd_jax.models.layers import BatchNorm

# The convolution before a BatchNorm, in the same module: pattern of the norm's name -> the convolution's.
_BEFORE = (
    (r"bn", r"conv"),
    (r"bn(\d)", r"conv\1"),
    (r"downsample_bn", r"downsample_conv"),
    (r"bn_(C\d)", r"merge_\1"),
    (r"bn_aggregate", r"aggregate"),
    (r"bn", r"lateral"),
    (r"bn", r"project"),
)


def fold(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a network -> variables without batch statistics, with which it gives the same in inference.

    kernel' = kernel * scale / sqrt(var + epsilon), bias' = bias - mean * scale / sqrt(var + epsilon); float32.

    Args:
      variables: {"params", "batch_stats"}.

    Raises:
      ValueError: a BatchNorm whose convolution is not known.
    """

    def folded(params, statistics, path):
        result = dict(params)
        for name in params:
            if name not in statistics:
                continue
            if "mean" not in statistics[name]:
                result[name] = folded(params[name], statistics[name], f"{path}{name}/")
                continue
            before = [re.sub(norm, conv, name) for norm, conv in _BEFORE if re.fullmatch(norm, name)]
            before = [conv for conv in before if conv in params]
            if len(before) != 1:
                raise ValueError(f"{path}{name}: no convolution is known before it among {', '.join(params)}")
            norm, stats = params[name], statistics[name]
            factor = norm["scale"] * jax.lax.rsqrt(stats["var"] + BatchNorm.epsilon)
            result[before[0]] = {**params[before[0]], "kernel": params[before[0]]["kernel"] * factor}
            result[name] = {"bias": norm["bias"] - stats["mean"] * factor}
        return result

    return {"params": folded(variables["params"], variables["batch_stats"], "")}
