"""Logit distillation (Hinton et al. 2015): the student's class distribution follows the teacher's, pixel by pixel."""

import jax
import jax.numpy as jnp

from hfd_jax.losses import masked_mean


def logit_loss(student, teacher, valid, temperature: float = 1.0, axis_name: str | None = None):
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over valid pixels.

    Args:
      student, teacher: logits [B, H, W, K]; no gradient flows into the teacher's.
      valid: [B, H, W] bool.
      temperature: T; its square keeps the gradient's size when T changes.
      axis_name: pmap axis to sum over.

    Returns:
      float32 scalar.
    """
    teacher = jax.lax.stop_gradient(teacher).astype(jnp.float32) / temperature
    log_p = jax.nn.log_softmax(teacher)
    log_q = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
    return temperature**2 * masked_mean(divergence, valid, axis_name)
