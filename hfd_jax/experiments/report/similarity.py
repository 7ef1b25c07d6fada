"""Linear centred kernel alignment (CKA): how alike two networks' features are, whatever basis they are written in.

Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited": with features X [N, C] and Y [N, C'] of
the same N positions, each channel centred over them,

    CKA = |Y' X|_F^2 / (|X' X|_F |Y' Y|_F)

1 for features that are equal up to rotation, scale and offset; nearly 0 for unrelated ones where N is large. Sums over
positions are all it needs: they add up over batches, and no adapter takes part.

Padding gives a feature a pattern of its own at each position of the tile, whatever the ground; on coarse taps of small
tiles that is most of its variance, and alike in any two networks. Centred at every position of the tile apart, CKA
compares what differs from tile to tile.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hfd_jax.distill.relations import mask_at

Moments = dict[str, Any]


def moments(x, y, valid) -> Moments:
    """Sums of two features over the valid positions of a batch; those of several batches add up.

    Args:
      x: [B, h, w, C].
      y: [B, h, w, C'].
      valid: [B, H, W] bool, pixels; H, W are multiples of h, w.

    Returns:
      {"count": [h, w], "x": [h, w, C], "y": [h, w, C']: sums over the batch; "xx": [C, C], "yy": [C', C'],
      "xy": [C, C']: over the positions too}, float32.
    """
    weights = mask_at(valid, x.shape[1:3]).astype(jnp.float32)
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)

    def product(one, other):
        # The accelerators' default would round the factors to fewer digits.
        return jnp.einsum("bhw,bhwc,bhwd->cd", weights, one, other, precision=jax.lax.Precision.HIGHEST)

    sums = {name: jnp.sum(weights[..., None] * feature, 0) for name, feature in (("x", x), ("y", y))}
    return {"count": jnp.sum(weights, 0), **sums, "xx": product(x, x), "yy": product(y, y), "xy": product(x, y)}


def linear_cka(sums: Mapping[str, np.ndarray], each_position: bool = False) -> float:
    """CKA of two features from their `moments`; NaN where one of them is the same everywhere.

    `each_position`: centred at every position of the tile apart, instead of over all of them.
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

    # What float32 sums leave of a constant feature is no variance.
    if any(np.trace(scatter(name, name)) <= 1e-6 * np.trace(sums[name * 2]) for name in ("x", "y")):
        return float("nan")
    norms = np.linalg.norm(scatter("x", "x")) * np.linalg.norm(scatter("y", "y"))
    return float(np.linalg.norm(scatter("x", "y")) ** 2 / norms)
