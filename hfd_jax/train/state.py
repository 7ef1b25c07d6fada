"""The training state and its initialisation."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from hfd_jax.core.seeds import word
from hfd_jax.core.trees import shape_differences
from hfd_jax.distill.base import Outputs
from hfd_jax.distill.registry import Combined
from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.resnet import fit_stem


@flax.struct.dataclass
class TrainState:
    """What a training step reads and replaces; a pytree.

    Attributes:
      step: int32, steps taken.
      params: {"model": ..., "distiller": {method: ...}}; without "distiller" if nothing is distilled.
      batch_stats: the same keys.
      memory: {method: ...}, arrays that a distillation method carries from step to step; not trained.
      opt_state: the optimiser's state for params.
      skipped: int32, number of steps whose update was skipped because something was not finite.
      bad_steps: int32, number of consecutive skipped steps up to now.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    skipped: jax.Array
    bad_steps: jax.Array
    memory: dict[str, Any] = flax.struct.field(default_factory=dict)

    @property
    def model_variables(self) -> dict[str, Any]:
        """The variables of the network alone, for its `apply`."""
        return {"params": self.params["model"], "batch_stats": self.batch_stats["model"]}


def initial_key(seed: int, sensor: str) -> jax.Array:
    """The key that initialises the networks of a sensor: all students share it, the teacher has its own."""
    return jax.random.fold_in(jax.random.key(word(seed)), ("eo", "sar").index(sensor))


def init_fn(
    model: SegmentationNetwork,
    tx: optax.GradientTransformation,
    bands: int,
    distiller: Combined | None = None,
    teacher: tuple[SegmentationNetwork, int] | None = None,
    size: int = 64,
) -> Callable[[jax.Array], TrainState]:
    """Returns `key -> TrainState`, to be jitted with output shardings (or `eval_shape`d).

    Args:
      model: the network to train.
      tx: its optimiser.
      bands: number of its input bands.
      distiller: the distillation methods, whose adapters are trained along with the network.
      teacher: (network, number of bands) that the distiller compares with.
      size: edge of the dummy input, pixels; the shapes of the parameters do not depend on it.
    """

    def init(key):
        model_key, distiller_key = jax.random.split(key)
        image = jnp.zeros((1, size, size, bands))
        variables = model.init(model_key, image)
        parts = {"model": variables}
        if distiller is not None:
            network, teacher_bands = teacher
            logits, features = model.apply(variables, image)
            target = network.init_with_output(model_key, jnp.zeros((1, size, size, teacher_bands)))
            (teacher_logits, targets), _ = target
            pixels = jnp.zeros((1, size, size), jnp.int32), jnp.ones((1, size, size), bool)
            student_outputs, teacher_outputs = Outputs(features, logits), Outputs(targets, teacher_logits)
            parts["distiller"] = distiller.init(distiller_key, student_outputs, teacher_outputs, *pixels)
        params = {name: part["params"] for name, part in parts.items()}
        batch_stats = {name: part.get("batch_stats", {}) for name, part in parts.items()}
        zero, memory = jnp.zeros((), jnp.int32), parts.get("distiller", {}).get("memory", {})
        return TrainState(zero, params, batch_stats, tx.init(params), skipped=zero, bad_steps=zero, memory=memory)

    return init


def student_from_teacher(
    student: dict[str, Any], teacher: dict[str, Any], stems: Sequence[tuple[str, ...]]
) -> dict[str, Any]:
    """Returns the teacher's variables with the stems fitted to the student's bands.

    The bands of the two sensors do not correspond, so every band of the student gets the mean kernel (`fit_stem`).

    Args:
      student: freshly initialised {"params", "batch_stats"}, which give the shapes.
      teacher: trained variables of the same architecture.
      stems: paths of the convolutions that read the bands.

    Raises:
      ValueError: another shape differs; names the parameters.
    """
    params, wanted = (flatten_dict(variables["params"]) for variables in (teacher, student))
    for stem in stems:
        path = (*stem, "kernel")
        if path in params and path in wanted:
            params[path] = fit_stem(params[path], [None] * wanted[path].shape[2])
    fitted = {**teacher, "params": unflatten_dict(params)}
    problems = shape_differences(student, fitted)
    if problems:
        raise ValueError("the teacher does not fit the student: " + "; ".join(problems[:5]))
    return fitted
