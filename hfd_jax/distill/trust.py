"""Which pixels of a frozen teacher are worth learning from."""

import jax
import jax.numpy as jnp

from hfd_jax.core.labels import IGNORE_LABEL


def trusted(logits, label, min_confidence: float):
    """Returns where the teacher is confident; on labelled pixels, where it is confident of the true class.

    Args:
      logits: the teacher's class scores [B, H, W, K].
      label: [B, H, W] integers; IGNORE_LABEL where unknown.
      min_confidence: least probability, of the label where it is known and of the most likely class elsewhere.

    Returns:
      [B, H, W] bool.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    known = label != IGNORE_LABEL
    of_label = jnp.sum(probabilities * jax.nn.one_hot(label, logits.shape[-1]), -1)
    return jnp.where(known, of_label, probabilities.max(-1)) >= min_confidence
