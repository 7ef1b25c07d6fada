"""Learning rate schedules and the optimiser."""

import jax
import optax

SCHEDULES = ("cosine", "poly", "constant")


def learning_rate(base: float, schedule: str, steps: int, warmup_steps: int) -> optax.Schedule:
    """Returns a linear warm-up from 0, followed by a decay to 0 at the last step ("poly": power 0.9) or a constant."""
    rest = max(steps - warmup_steps, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(base, rest),
        "poly": optax.polynomial_schedule(base, 0.0, 0.9, rest),
        "constant": optax.constant_schedule(base),
    }[schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, base, max(warmup_steps, 1)), after], [warmup_steps])


def make_optimiser(schedule: optax.Schedule, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    """Returns AdamW with a clipped global gradient norm (0: no clipping). Weight decay applies to kernels only."""

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    return optax.chain(*clip, optax.adamw(schedule, weight_decay=weight_decay, mask=kernels))
