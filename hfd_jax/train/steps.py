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
from hfd_jax.data.inputs import InputSpec, seen_label, training_input
from hfd_jax.distill.base import Outputs
from hfd_jax.distill.registry import Combined
from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.train.state import TrainState

Terms = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights of the loss terms.

    Attributes:
      ce, dice: segmentation losses.
      class_weights: of the cross-entropy, one per class; None for equal ones.
      distil: (method, weight) of every distillation method.
      warmup_steps: the methods' weights grow linearly over so many steps.
      fading: methods whose weights also fall linearly, to 0 at the last step.
      steps: number of them; matters where something fades.
    """

    ce: float = 1.0
    dice: float = 1.0
    class_weights: tuple[float, ...] | None = None
    distil: tuple[tuple[str, float], ...] = ()
    warmup_steps: int = 0
    fading: tuple[str, ...] = ()
    steps: int = 0

    @property
    def distils(self) -> bool:
        return bool(self.distil)

    def weights(self, step) -> dict[str, Any]:
        """Of the distillation methods at a step (int32, from 0)."""
        ramp = jnp.minimum(1.0, (step + 1) / max(self.warmup_steps, 1))
        rest = 1 - (step + 1) / max(self.steps, 1)
        return {name: weight * ramp * (rest if name in self.fading else 1.0) for name, weight in self.distil}


@dataclasses.dataclass(frozen=True)
class Setup:
    """The fixed surroundings of a step.

    Attributes:
      model: the network that learns.
      sensor: its input, "eo" or "sar".
      tx: its optimiser.
      inputs: how batches become input.
      objective: loss weights.
      teacher: the frozen network, if the objective distils.
      distiller: the methods that compare the two, if the objective distils.
    """

    model: SegmentationNetwork
    sensor: str
    tx: optax.GradientTransformation
    inputs: InputSpec
    objective: Objective
    teacher: SegmentationNetwork | None = None
    distiller: Combined | None = None


def segmentation_terms(logits, label, objective: Objective) -> Terms:
    """Weighted cross-entropy and soft Dice."""
    return {
        "ce": objective.ce * losses.cross_entropy(logits, label, objective.class_weights),
        "dice": objective.dice * losses.soft_dice(logits, label),
    }


def supervised_step(setup: Setup, state: TrainState, teacher: Any, batch: dict) -> tuple[TrainState, Terms]:
    """Stage 1: an update of the EO teacher on (EO, label); or of a student without distillation, on (SAR, label)."""
    del teacher
    batch = training_input(batch, setup.inputs)

    def loss_terms(params):
        (logits, _), updated = _forward(setup.model, params["model"], state.batch_stats["model"], batch[setup.sensor])
        label = seen_label(batch, setup.sensor)
        terms = segmentation_terms(logits, label, setup.objective)
        return terms, {"batch_stats": {"model": updated}}, {}

    return _update(setup, state, loss_terms)


def student_step(setup: Setup, state: TrainState, teacher: Any, batch: dict) -> tuple[TrainState, Terms]:
    """Stage 2: one update of the SAR student: labels, plus what the frozen teacher makes of the same pair.

    `teacher` holds the variables of setup.teacher; it enters as an argument, is not differentiated and not returned.
    """
    key = jax.random.key(global_sum(jnp.sum(batch["key"])))
    batch = training_input(batch, setup.inputs)
    both_valid, label = batch["sar_valid"] & batch["eo_valid"], seen_label(batch, "sar")
    taught, weights = teach(setup, teacher, batch), setup.objective.weights(state.step)

    def loss_terms(params):
        (logits, features), updated = _forward(setup.model, params["model"], state.batch_stats["model"], batch["sar"])
        terms = segmentation_terms(logits, label, setup.objective)
        statistics = state.batch_stats["distiller"]
        variables = {"params": params["distiller"], "batch_stats": statistics, "memory": state.memory}
        found, changed = setup.distiller.apply(variables, Outputs(features, logits), taught, label, both_valid, key)
        terms |= {method: weight * found.pop(method) for method, weight in weights.items()}
        batch_stats = {"model": updated, "distiller": changed["batch_stats"]}
        return terms, {"batch_stats": batch_stats, "memory": changed["memory"]}, found

    return _update(setup, state, loss_terms)


def teach(setup: Setup, teacher: Any, batch: dict) -> Outputs:
    """The frozen teacher's features and logits."""
    logits, features = setup.teacher.apply(jax.lax.stop_gradient(teacher), batch["eo"], train=False)
    return Outputs(features, logits)


def train_step(setup: Setup) -> Callable[[TrainState, Any, dict], tuple[TrainState, Terms]]:
    """The step that fits the setup, as a function of (state, teacher, batch) alone.

    Returns:
      A function whose metrics are scalars: every weighted loss term by name, its share of the total ("share_<name>"),
      the methods' unweighted further numbers ("hfd_<tap>"), "loss" and "grad_norm", all float32; and int32 "skipped"
      and "bad_steps" of `TrainState`. Where one of the former, a batch statistic or a memory is not finite, the state
      stays but for its counters.
    """
    step = student_step if setup.objective.distils else supervised_step
    return lambda state, teacher, batch: step(setup, state, teacher, batch)


def _forward(model: SegmentationNetwork, params, batch_stats, image):
    outputs, changed = model.apply(
        {"params": params, "batch_stats": batch_stats}, image, train=True, mutable=["batch_stats"]
    )
    return outputs, changed["batch_stats"]


def _update(setup: Setup, state: TrainState, loss_terms) -> tuple[TrainState, Terms]:
    """Differentiates the sum of the terms and applies the optimiser, unless something is not finite.

    `loss_terms` takes params and returns (weighted terms, fields of the state that the step changes beside parameters
    and optimiser, further metrics).
    """

    def total(params):
        terms, kept, extra = loss_terms(params)
        return sum(terms.values()), (terms, kept, extra)

    (loss, (terms, kept, extra)), grads = jax.value_and_grad(total, has_aux=True)(state.params)
    grads = global_mean(grads)
    grad_norm = optax.tree.norm(grads)

    def update():
        updates, opt_state = setup.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, opt_state=opt_state, **kept)

    good = _all_finite((loss, grad_norm, kept))
    new_state = _counted(jax.lax.cond(good, update, lambda: state), good)
    shares = {f"share_{name}": value / jnp.maximum(loss, losses.EPS) for name, value in terms.items()}
    counts = {"skipped": new_state.skipped, "bad_steps": new_state.bad_steps}
    return new_state, {"loss": loss, "grad_norm": grad_norm, **terms, **shares, **extra, **counts}


def _counted(state: TrainState, good) -> TrainState:
    """One step more, which `good` tells to have been an update or to be skipped."""
    return state.replace(
        step=state.step + 1,
        skipped=state.skipped + jnp.where(good, 0, 1),
        bad_steps=jnp.where(good, 0, state.bad_steps + 1),
    )


def _all_finite(tree: Any):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))
