"""Linear centred kernel alignment (CKA): similarity of two networks' features, independent of their basis.

Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited": with features X [N, C] and Y [N, C'] of
the same N positions, each channel centred over the positions,

    CKA = |Y' X|_F^2 / (|X' X|_F |Y' Y|_F)

CKA is 1 for features that are equal up to rotation, scale and offset, and close to 0 for unrelated features if N is
large. It needs only sums over positions, which add up over batches, and uses no distillation adapters.

Padding adds a pattern to the features that depends on the position in the tile and not on the ground. On coarse taps of
small tiles, this pattern is most of the variance and similar in any two networks. With features centred separately at
each position of the tile, CKA compares the variation between tiles.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hfd_jax.distill.relations import mask_at

Moments = dict[str, Any]


def moments(x, y, valid) -> Moments:
    """Computes sums of two features over the valid positions of a batch; sums of several batches can be added.

    Args:
      x: first feature, [B, h, w, C].
      y: second feature, [B, h, w, C'].
      valid: valid pixels, [B, H, W] bool; H, W are multiples of h, w.

    Returns:
      {"count": [h, w], "x": [h, w, C], "y": [h, w, C']: sums over the batch; "xx": [C, C], "yy": [C', C'],
      "xy": [C, C']: sums over batch and positions}, float32.
    """
    weights = mask_at(valid, x.shape[1:3]).astype(jnp.float32)
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)

    def product(one, other):
        # The default precision on accelerators rounds the factors.
        return jnp.einsum("bhw,bhwc,bhwd->cd", weights, one, other, precision=jax.lax.Precision.HIGHEST)

    sums = {name: jnp.sum(weights[..., None] * feature, 0) for name, feature in (("x", x), ("y", y))}
    return {"count": jnp.sum(weights, 0), **sums, "xx": product(x, x), "yy": product(y, y), "xy": product(x, y)}


def linear_cka(sums: Mapping[str, np.ndarray], each_position: bool = False) -> float:
    """Computes the CKA of two features from their `moments`; NaN if one of them is constant.

    Args:
      sums: the sum of `moments` over batches.
      each_position: centre the features separately at each position of the tile instead of over all positions.
    """
    sums = {name: np.asarray(value, np.float64) for name, value in sums.items()}
    groups = {name: sums[name].reshape(-1, sums[name].shape[-1]) for name in ("x", "y")}
    count = sums["count"].reshape(-1, 1)
    if not each_position:
        groups, count = (
            {name: group.sum(0, keepdims=True) for name, group in groups.items()},
            count.sum(0, keepdims=True),
        )

    def scatter(one: str, other: str) -> np.ndarray:
        return sums[one + other] - (groups[one] / np.maximum(count, 1)).T @ groups[other]

    # The variance of a constant feature is rounding error of the float32 sums.
    if any(np.trace(scatter(name, name)) <= 1e-6 * np.trace(sums[name * 2]) for name in ("x", "y")):
        return float("nan")
    norms = np.linalg.norm(scatter("x", "x")) * np.linalg.norm(scatter("y", "y"))
    return float(np.linalg.norm(scatter("x", "y")) ** 2 / norms)
