"""Linear centred kernel alignment (CKA): how alike two networks' features are, whatever basis they are written in.

Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited": with features X [N, C] and Y [N, C'] of
the same N positions, each channel centred over them,

    CKA = |Y' X|_F^2 / (|X' X|_F |Y' Y|_F)

1 for features that are equal up to rotation, scale and offset; nearly 0 for unrelated ones where N is large. Sums over
positions are all it needs: they add up over batches, and no adapter takes part.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hfd_jax.distill.hfd import mask_at

Moments = dict[str, Any]


def moments(x, y, valid) -> Moments:
    """Sums of two features over the valid positions of a batch; those of several batches add up.

    Args:
      x: [B, h, w, C].
      y: [B, h, w, C'].
      valid: [B, H, W] bool, pixels; H, W are multiples of h, w.

    Returns:
      {"count": [], "x": [C], "y": [C'], "xx": [C, C], "yy": [C', C'], "xy": [C, C']} float32.
    """
    weights = mask_at(valid, x.shape[1:3]).astype(jnp.float32)
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)

    def product(one, other):
        # The accelerators' default would round the factors to fewer digits.
        return jnp.einsum("bhw,bhwc,bhwd->cd", weights, one, other, precision=jax.lax.Precision.HIGHEST)

    sums = {name: jnp.einsum("bhw,bhwc->c", weights, feature) for name, feature in (("x", x), ("y", y))}
    return {"count": jnp.sum(weights), **sums, "xx": product(x, x), "yy": product(y, y), "xy": product(x, y)}


def linear_cka(sums: Mapping[str, np.ndarray]) -> float:
    """CKA of two features from their `moments`; NaN where one of them is the same everywhere."""
    sums = {name: np.asarray(value, np.float64) for name, value in sums.items()}
    count = max(float(sums["count"]), 1.0)

    def covariance(one: str, other: str) -> np.ndarray:
        return sums[one + other] / count - np.outer(sums[one], sums[other]) / count**2

    norms = np.linalg.norm(covariance("x", "x")) * np.linalg.norm(covariance("y", "y"))
    # What float32 sums leave of a constant feature is no variance.
    constant = any(np.trace(covariance(name, name)) <= 1e-6 * np.trace(sums[name * 2]) / count for name in ("x", "y"))
    return float("nan") if constant else float(np.linalg.norm(covariance("x", "y")) ** 2 / norms)
