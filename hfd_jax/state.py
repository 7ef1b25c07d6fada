"""The state of a training run and how it comes into being."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from hfd_jax.distill.hfd import HFD
from hfd_jax.models.segmenter import Segmenter


@flax.struct.dataclass
class TrainState:
    """What a step reads and replaces; a pytree.

    Attributes:
      step: int32, steps taken.
      params: {"model": ..., "distiller": ...}; the distiller's part is empty where nothing is distilled.
      batch_stats: the same keys.
      opt_state: of the optimiser over params.
      skipped: int32, steps whose update was left out because something in it was not finite.
      bad_steps: int32, how many of them came last, in a row.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    skipped: jax.Array
    bad_steps: jax.Array

    @property
    def model_variables(self) -> dict[str, Any]:
        """The network alone, as `Segmenter.apply` takes it."""
        return {"params": self.params["model"], "batch_stats": self.batch_stats["model"]}


def init_fn(
    model: Segmenter,
    tx: optax.GradientTransformation,
    bands: int,
    distiller: HFD | None = None,
    teacher: tuple[Segmenter, int] | None = None,
    size: int = 64,
) -> Callable[[jax.Array], TrainState]:
    """Returns `key -> TrainState`, to be jitted with output shardings (or `eval_shape`d).

    Args:
      model: the network to train.
      tx: its optimiser.
      bands: number of its input bands.
      distiller: learns along with it, if given.
      teacher: (network, bands) that the distiller compares with.
      size: edge of the dummy input, pixels; shapes of parameters do not depend on it.
    """

    def init(key):
        model_key, distiller_key = jax.random.split(key)
        image = jnp.zeros((1, size, size, bands))
        variables = model.init(model_key, image)
        parts = {"model": variables}
        if distiller is not None:
            network, teacher_bands = teacher
            _, features = model.apply(variables, image)
            (_, targets), _ = network.init_with_output(model_key, jnp.zeros((1, size, size, teacher_bands)))
            parts["distiller"] = distiller.init(distiller_key, features, targets, jnp.ones((1, size, size), bool))
        params = {name: part["params"] for name, part in parts.items()}
        batch_stats = {name: part.get("batch_stats", {}) for name, part in parts.items()}
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, batch_stats, tx.init(params), skipped=zero, bad_steps=zero)

    return init


def student_from_teacher(
    student: dict[str, Any], teacher: dict[str, Any], stem: tuple[str, ...] = Segmenter.stem
) -> dict[str, Any]:
    """The teacher's variables with the stem fitted to the student's bands.

    The stem's kernel [k, k, bands, width] gets the mean over the teacher's bands in every band of the student, scaled
    so that the sum over bands stays: activations keep their size.

    Args:
      student: freshly initialised {"params", "batch_stats"}; gives the shapes.
      teacher: trained variables of the same architecture.
      stem: path of the convolution that sees the bands.

    Raises:
      ValueError: any other shape differs; names the parameters.
    """
    path = (*stem, "kernel")
    params, wanted = (flatten_dict(variables["params"]) for variables in (teacher, student))
    if path in params and path in wanted:
        old, bands = params[path], wanted[path].shape[2]
        params[path] = jnp.repeat(old.mean(2, keepdims=True), bands, 2) * (old.shape[2] / bands)
    fitted = {**teacher, "params": unflatten_dict(params)}
    problems = shape_differences(student, fitted)
    if problems:
        raise ValueError("the teacher does not fit the student: " + "; ".join(problems[:5]))
    return fitted


def shape_differences(expected: Any, found: Any) -> list[str]:
    """Names the leaves of two trees that differ in presence or shape, as "path: expected [..], found [..]"."""

    def shapes(tree):
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape)
            for path, x in jax.tree.leaves_with_path(tree)
        }

    one, other = shapes(expected), shapes(found)
    return [
        f"{path}: expected {one.get(path, 'nothing')}, found {other.get(path, 'nothing')}"
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]
