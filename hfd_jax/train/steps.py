"""The training steps: pure functions of (state, teacher, batch). No I/O, no loops.

`student_step` is where the teacher feeds the student.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hfd_jax.core import losses
from hfd_jax.core.collectives import global_mean, global_sum
from hfd_jax.core.platform import on_cpu
from hfd_jax.data.inputs import InputSpec, seen_label, training_input
from hfd_jax.distill.base import Outputs
from hfd_jax.distill.registry import Combined
from hfd_jax.distill.trust import trusted
from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.train.state import TrainState

Terms = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights of the loss terms.

    Attributes:
      ce, dice: weights of the segmentation losses.
      class_weights: weights of the classes in the cross-entropy; None for equal weights.
      distil: (method, weight) of every distillation method.
      warmup_steps: number of steps over which the methods' weights grow linearly from 0.
      fading: methods whose weights fall linearly to 0 at the last step.
      steps: number of steps; used only by `fading`.
      max_share: upper limit of the share of distillation in the gradient, see `limited_scale`; 1: none.
      min_confidence: minimum confidence of the teacher for a pixel to be distilled, see `trusted`; 0: all are.
    """

    ce: float = 1.0
    dice: float = 1.0
    class_weights: tuple[float, ...] | None = None
    distil: tuple[tuple[str, float], ...] = ()
    warmup_steps: int = 0
    fading: tuple[str, ...] = ()
    steps: int = 0
    max_share: float = 1.0
    min_confidence: float = 0.0

    @property
    def distils(self) -> bool:
        return bool(self.distil)

    def weights(self, step) -> dict[str, Any]:
        """The weights of the distillation methods at a step (int32, counted from 0)."""
        ramp = jnp.minimum(1.0, (step + 1) / max(self.warmup_steps, 1))
        rest = 1 - (step + 1) / max(self.steps, 1)
        return {name: weight * ramp * (rest if name in self.fading else 1.0) for name, weight in self.distil}


@dataclasses.dataclass(frozen=True)
class Setup:
    """The constant part of a training step.

    Attributes:
      model: the network that is trained.
      sensor: the input it reads, "eo" or "sar".
      tx: its optimiser.
      inputs: turns stored batches into network input.
      objective: the weights of the loss terms.
      teacher: the frozen network; None if nothing is distilled.
      distiller: the methods that compare student and teacher; None if nothing is distilled.
    """

    model: SegmentationNetwork
    sensor: str
    tx: optax.GradientTransformation
    inputs: InputSpec
    objective: Objective
    teacher: SegmentationNetwork | None = None
    distiller: Combined | None = None


def segmentation_terms(logits, label, objective: Objective) -> Terms:
    """Returns the weighted cross-entropy and soft Dice losses."""
    return {
        "ce": objective.ce * losses.cross_entropy(logits, label, objective.class_weights),
        "dice": objective.dice * losses.soft_dice(logits, label),
    }


def supervised_step(setup: Setup, state: TrainState, teacher: Any, batch: dict) -> tuple[TrainState, Terms]:
    """Stage 1: updates the EO teacher on (EO, label), or a student without distillation on (SAR, label)."""
    del teacher
    batch = training_input(batch, setup.inputs)

    label = seen_label(batch, setup.sensor)

    def loss(params):
        (logits, _), updated = _forward(setup.model, params["model"], state.batch_stats["model"], batch[setup.sensor])
        terms = segmentation_terms(logits, label, setup.objective)
        return sum(terms.values()), (terms, {"batch_stats": {"model": updated}})

    gradients, (terms, kept) = jax.grad(loss, has_aux=True)(state.params)
    return _update(setup, state, gradients, terms, kept, {})


def student_step(setup: Setup, state: TrainState, teacher: Any, batch: dict) -> tuple[TrainState, Terms]:
    """Stage 2: updates the SAR student from the labels and from the frozen teacher's features of the same pairs.

    `teacher` holds the variables of setup.teacher. It is an argument of the step: no gradient is taken with respect to
    it, and it is not returned.

    The gradients of the labels and of the teacher with respect to the student's outputs are computed separately, so
    that the teacher's can be limited (`limited_scale`), and then propagated through the student together.
    """
    key = jax.random.key(global_sum(jnp.sum(batch["key"])))
    batch = training_input(batch, setup.inputs)
    both_valid, label = batch["sar_valid"] & batch["eo_valid"], seen_label(batch, "sar")
    taught, weights = teach(setup, teacher, batch), setup.objective.weights(state.step)
    if setup.objective.min_confidence:
        both_valid &= trusted(taught.logits, label, setup.objective.min_confidence)

    @jax.named_scope("student")
    def forward(params):
        (logits, features), updated = _forward(setup.model, params, state.batch_stats["model"], batch["sar"])
        return Outputs(features, logits), updated

    @jax.named_scope("labels")
    def from_labels(logits):
        terms = segmentation_terms(logits, label, setup.objective)
        return sum(terms.values()), terms

    @jax.named_scope("distillation")
    def from_teacher(params, outputs):
        variables = {"params": params, "batch_stats": state.batch_stats["distiller"], "memory": state.memory}
        found, changed = setup.distiller.apply(variables, outputs, taught, label, both_valid, key)
        terms = {method: weight * found.pop(method) for method, weight in weights.items()}
        return sum(terms.values()), (terms, found, changed)

    params = state.params
    outputs, backward, updated = jax.vjp(forward, params["model"], has_aux=True)
    (_, terms), by_labels = jax.value_and_grad(from_labels, has_aux=True)(outputs.logits)
    (_, (distilled, extra, changed)), (adapters, by_teacher) = jax.value_and_grad(
        from_teacher, argnums=(0, 1), has_aux=True
    )(params["distiller"], outputs)
    scale, share = limited_scale(setup, params["model"], outputs, by_labels, by_teacher)
    adapters, by_teacher = jax.tree.map(lambda g: (scale * g).astype(g.dtype), (adapters, by_teacher))
    (model,) = backward(by_teacher.replace(logits=by_teacher.logits + by_labels))
    terms |= {method: scale * term for method, term in distilled.items()}
    kept = {
        "batch_stats": {"model": updated, "distiller": changed["batch_stats"]},
        "memory": changed["memory"],
    }
    extra |= {"gradient_share": share}
    return _update(setup, state, {"model": model, "distiller": adapters}, terms, kept, extra)


@jax.named_scope("gradient_share")
def limited_scale(setup: Setup, params: Any, outputs: Outputs, by_labels, by_teacher: Outputs):
    """Limits the teacher's share in the gradient with respect to the features that it is compared with.

    The share is |g_T| / (|g_T| + |g_L|), where g_T is the gradient of distillation with respect to all compared
    features, g_L that of the labels' losses with respect to the classifier's input A, and logits count through A.

    Args:
      setup: its objective's max_share is the limit.
      params: the student's parameters.
      outputs: the student's outputs.
      by_labels: gradient of the segmentation losses with respect to outputs.logits.
      by_teacher: gradient of the distillation losses with respect to outputs.

    Returns:
      (factor, at most 1, for the distillation losses; share of the teacher after that); float32 scalars.
    """

    def classify(feature):
        return setup.model.classify(jax.lax.stop_gradient(params), feature, outputs.logits.shape[1:3])

    _, to_feature = jax.vjp(classify, outputs.features["A"])
    at_labels = to_feature(by_labels)[0]
    compared = by_teacher.features | {"A": by_teacher.features["A"] + to_feature(by_teacher.logits)[0]}
    labels, teacher = (jnp.sqrt(global_sum(_squares(gradient))) for gradient in (at_labels, compared))
    limit, scale = setup.objective.max_share, jnp.float32(1.0)
    if limit < 1:
        scale = jnp.minimum(scale, limit / (1 - limit) * labels / jnp.maximum(teacher, losses.TINY))
    teacher = scale * teacher
    return scale, teacher / jnp.maximum(teacher + labels, losses.TINY)


def _squares(tree: Any):
    return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(tree))


@jax.named_scope("teacher")
def teach(setup: Setup, teacher: Any, batch: dict) -> Outputs:
    """Runs the frozen teacher on the optical images: its features and logits."""
    logits, features = setup.teacher.apply(jax.lax.stop_gradient(teacher), batch["eo"], train=False)
    return Outputs(features, logits)


def train_step(setup: Setup) -> Callable[[TrainState, Any, dict], tuple[TrainState, Terms]]:
    """Returns the training step of a setup: (state, teacher, batch) -> (state, metrics).

    The metrics are scalars: every weighted loss term by name, its share of the total ("share_<name>"), further values
    of the methods ("hfd_<tap>"), "gradient_share" (of distillation, see `limited_scale`), "loss" and "grad_norm", all
    float32; and "skipped" and "bad_steps" of the `TrainState`, int32. If the loss, the gradient, a batch statistic or a
    memory is not finite, only the counters of the state change.
    """
    step = student_step if setup.objective.distils else supervised_step
    return lambda state, teacher, batch: step(setup, state, teacher, batch)


def _forward(model: SegmentationNetwork, params, batch_stats, image):
    outputs, changed = model.apply(
        {"params": params, "batch_stats": batch_stats}, image, train=True, mutable=["batch_stats"]
    )
    return outputs, changed["batch_stats"]


@jax.named_scope("update")
def _update(
    setup: Setup, state: TrainState, grads: Any, terms: Terms, kept: dict[str, Any], extra: Terms
) -> tuple[TrainState, Terms]:
    """Applies the optimiser to the gradients, unless something is not finite.

    Args:
      setup, state: of the step.
      grads: of the sum of the terms, with the structure of state.params.
      terms: the weighted losses.
      kept: further fields of the state to replace.
      extra: further metrics.
    """
    loss, grads = sum(terms.values()), jax.tree.map(_in_order, global_mean(grads))
    grad_norm = optax.tree.norm(grads)

    good = _all_finite((loss, grad_norm, kept))
    updates, opt_state = setup.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    updated = state.replace(params=params, opt_state=opt_state, **kept)
    # Selected per array, which fuses into the update; accelerators copy the whole state around a conditional.
    new_state = _counted(jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, state), good)
    shares = {f"share_{name}": value / jnp.maximum(loss, losses.EPS) for name, value in terms.items()}
    counts = {"skipped": new_state.skipped, "bad_steps": new_state.bad_steps}
    return new_state, {"loss": loss, "grad_norm": grad_norm, **terms, **shares, **extra, **counts}


def _in_order(gradient):
    """Returns the gradient in the memory layout of its parameter.

    GPU convolutions give another one. The update would take it over, and the new state could not replace the old one in
    place. As a vector, which the barrier keeps, an array has only one layout.
    """
    if on_cpu():
        return gradient
    return jax.lax.optimization_barrier(gradient.ravel()).reshape(gradient.shape)


def _counted(state: TrainState, good) -> TrainState:
    """Advances the counters by one step, which was an update if `good` and was skipped otherwise."""
    return state.replace(
        step=state.step + 1,
        skipped=state.skipped + jnp.where(good, 0, 1),
        bad_steps=jnp.where(good, 0, state.bad_steps + 1),
    )


def _all_finite(tree: Any):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))
