"""Base classes of the distillation methods: Linen modules that compare two networks' outputs for the same pairs.

Each method has its own file; `registry.py` lists them and runs several at once. A method

- propagates gradients into the student's outputs and its own parameters, but not into the teacher's outputs;
- averages over valid pixels (positions, channels, nodes, classes) and samples, so that its value does not depend on
  the batch size, the image size or the number of devices;
- ignores values at invalid pixels, except in the batch statistics of its adapters;
- accepts unlabelled pairs (IGNORE_LABEL everywhere).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from hfd_jax.core import options
from hfd_jax.core.errors import ConfigError, nearest
from hfd_jax.core.options import option
from hfd_jax.distill.relations import label_at, mask_at, resized

TAPS_RULE = "taps of both networks, none twice"
TAP_WEIGHTS_RULE = "one number of 0 or more per tap, or ()"
LOGITS = "logits"  # the name of the class scores in a list of taps
Terms = dict[str, jax.Array]


@flax.struct.dataclass
class Outputs:
    """Outputs of a network for a batch.

    Attributes:
      features: tap -> [B, h, w, C].
      logits: [B, H, W, K].
    """

    features: dict[str, Any]
    logits: Any

    def maps(self) -> dict[str, Any]:
        """Returns the features together with the logits, under the name LOGITS."""
        return {**self.features, LOGITS: self.logits}


class Distiller(nn.Module):
    """Base class of the methods: a Linen module whose options are the fields of config.distill.<method>.

    A subclass sets

      method: its name in the config and the log.
      title: its name in tables.
      taps: the teacher's outputs that it reads, names of features or LOGITS; an option, a class variable or a property.
      accepts_logits: whether the option `taps` may contain LOGITS.

    and implements `__call__`, or `compare` if it derives from `TapDistiller`.

    Attributes:
      steps: number of training steps of the student; only methods that change during training read it.
      weight: weight of the loss.
    """

    method: ClassVar[str]
    title: ClassVar[str]
    accepts_logits: ClassVar[bool] = False

    steps: int = dataclasses.field(default=0, kw_only=True)
    weight: float = option(1.0, "weight of the loss", above=0)

    @classmethod
    def problems(cls, values: Mapping[str, Any], known: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yields (option, problem) for each invalid value in the method's config.

        Args:
          values: option -> value.
          known: the taps of all architectures.
        """
        yield from options.problems(cls, values)
        for name, taps in chosen_taps(values):
            choices = (*known, LOGITS) if cls.accepts_logits else known
            unknown = [tap for tap in taps if tap not in choices]
            if unknown:
                yield name, f"{unknown[0]!r} is unknown; {nearest(unknown[0], choices)}"
            elif not taps:
                yield name, "expected at least one tap"
            elif len(set(taps)) < len(taps):
                yield name, "a tap is named twice"
        weights, count = values.get("tap_weights", ()), len(values.get("taps", ()))
        if not all(isinstance(weight, int | float) for weight in weights):
            yield "tap_weights", "expected numbers"
        elif weights and (len(weights) != count or min(weights) < 0 or sum(weights) <= 0):
            yield "tap_weights", f"expected {count} weights, one per tap, each 0 or more and at least one above 0"

    def __call__(self, student: Outputs, teacher: Outputs, label, valid, train: bool = True) -> Terms:
        """Compares the two networks on a batch.

        Args:
          student: the student's outputs; gradients flow into them.
          teacher: the teacher's outputs; no gradients flow into them.
          label: [B, H, W] integers; IGNORE_LABEL for unlabelled pixels.
          valid: [B, H, W] bool; the pixels observed by both sensors.
          train: whether adapters use batch statistics and memories are updated.

        Returns:
          {method: loss}, plus further values to log whose names start with the method's; unweighted float32 scalars.

        Raises:
          ConfigError: If one of the networks lacks a tap.
        """
        raise NotImplementedError

    def progress(self, train: bool):
        """Share of the student's `steps` that are done with this one; 1 if their number is unknown (0).

        Steps are counted in the collection "memory" while `train` is true. Call it from a compact method.

        Returns:
          float32 scalar, above 0 and at most 1.
        """
        done = self.variable("memory", "steps", jnp.zeros, (), jnp.int32)
        share = jnp.minimum((done.value + 1) / max(self.steps, 1), 1.0)
        if train and not self.is_initializing():
            done.value += 1
        return share


def chosen_taps(values: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """Returns (option, taps) for each of the options "tap" and "taps" that a method's config contains."""
    found = [(name, values[name]) for name in ("tap", "taps") if name in values]
    return [(name, (taps,) if isinstance(taps, str) else tuple(taps)) for name, taps in found]


@flax.struct.dataclass
class Maps:
    """The outputs of both networks at one tap, on the teacher's grid.

    Attributes:
      student: [B, h, w, C] float32; resized if the student's grid differs.
      target: the teacher's output, [B, h, w, C'] float32, detached.
      mask: [B, h, w] bool; the valid positions.
      label: [B, h, w] int32; IGNORE_LABEL for unlabelled positions.
      classes: number of classes K.
      dtype: dtype that the student computes in, for layers whose result needs no more.
    """

    student: Any
    target: Any
    mask: Any
    label: Any
    classes: int = flax.struct.field(pytree_node=False)
    dtype: Any = flax.struct.field(pytree_node=False, default=jnp.float32)

    @property
    def masked_student(self):
        """`student`, set to 0 at invalid positions, as input to layers that mix positions."""
        return self.student * self.mask[..., None]


def compared(student: Outputs, teacher: Outputs, tap: str, label, valid, method: str) -> Maps:
    """Returns the outputs of both networks at a tap.

    Raises:
      ConfigError: If one of the networks lacks the tap; the message lists the valid ones.
    """
    of_student, of_teacher = student.maps(), teacher.maps()
    if tap not in of_student or tap not in of_teacher:
        known = ", ".join(name for name in of_student if name in of_teacher)
        raise ConfigError(f"config.distill.{method} compares {tap!r}; both networks have {known}")
    target = jax.lax.stop_gradient(of_teacher[tap]).astype(jnp.float32)
    x, grid = of_student[tap].astype(jnp.float32), target.shape[1:3]
    if x.shape[1:3] != grid:
        x = resized(x, mask_at(valid, x.shape[1:3]), grid)
    mask, known = mask_at(valid, grid), label_at(label, valid, grid)
    return Maps(x, target, mask, known, student.logits.shape[-1], of_student[tap].dtype)


def projected(x, channels: int, name: str):
    """Projects x to `channels` channels with a 1x1 convolution; returns x unchanged if it already has that number.

    Call it from a compact method.
    """
    return x if x.shape[-1] == channels else nn.Conv(channels, (1, 1), use_bias=False, name=name)(x)


class TapDistiller(Distiller):
    """A method that compares each tap separately; its loss is the weighted mean over the taps.

    Attributes:
      taps: names of features, and LOGITS if the method accepts it.
      tap_weights: one weight per tap; () uses the method's `own_weights`, by default 1 for each tap.
    """

    own_weights: ClassVar[Mapping[str, float]] = MappingProxyType({})

    taps: tuple[str, ...] = option(("A",), "features to compare", rule=TAPS_RULE)
    tap_weights: tuple[float, ...] = ()

    def weights(self) -> tuple[float, ...]:
        """Returns one weight per tap, normalised to sum 1."""
        weights = self.tap_weights or tuple(self.own_weights.get(tap, 1.0) for tap in self.taps)
        return tuple(weight / sum(weights) for weight in weights)

    @nn.compact
    def __call__(self, student: Outputs, teacher: Outputs, label, valid, train: bool = True) -> Terms:
        """See `Distiller`; also returns the loss of each tap, as "<method>_<tap>"."""
        losses = {
            tap: self.compare(tap, compared(student, teacher, tap, label, valid, self.method), train)
            for tap in self.taps
        }
        mean = sum(weight * losses[tap] for weight, tap in zip(self.weights(), self.taps, strict=True))
        return {self.method: mean, **{f"{self.method}_{tap}": loss for tap, loss in losses.items()}}

    def compare(self, tap: str, maps: Maps, train: bool):
        """Returns the loss of one tap, a float32 scalar; every method implements this."""
        raise NotImplementedError
