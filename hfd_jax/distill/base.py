"""What a distillation method is: a Linen module that compares the outputs of two networks for the same pairs.

One small file per method; `methods.py` lists them and runs several at once. A method

- lets gradients flow into the student's outputs and its own parameters, none into the teacher's;
- is a mean over valid pixels (positions, channels, nodes, classes) and samples: it depends neither on the batch,
  nor on the image's size, nor on the number of devices;
- sees values at invalid pixels in no other way than batch statistics of its adapters do;
- takes pairs without labels (IGNORE_LABEL everywhere).
"""

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

LOGITS = "logits"  # named like a tap where class scores are compared
Terms = dict[str, jax.Array]


@flax.struct.dataclass
class Outputs:
    """Of a network, for a batch.

    Attributes:
      features: tap -> [B, h, w, C].
      logits: [B, H, W, K].
    """

    features: dict[str, Any]
    logits: Any

    def maps(self) -> dict[str, Any]:
        """The features, and the logits as LOGITS."""
        return {**self.features, LOGITS: self.logits}


class Distiller(nn.Module):
    """Base class of the methods: a Linen module whose options are the fields of config.distill.<method>.

    A subclass sets

      method: its name in the config and in the log.
      title: its name in tables.
      taps: what it reads of the teacher, names of features and LOGITS; an option, a class variable or a property.
      accepts_logits: whether its option `taps` may name LOGITS.

    and implements `__call__`, or `compare` as a `TapDistiller`.
    """

    method: ClassVar[str]
    title: ClassVar[str]
    accepts_logits: ClassVar[bool] = False

    weight: float = option(1.0, "weight of the loss", above=0)

    @classmethod
    def problems(cls, values: Mapping[str, Any], known: Sequence[str]) -> Iterator[tuple[str, str]]:
        """(option, what is wrong) of its config.

        Args:
          values: option -> value.
          known: the taps that exist in any architecture.
        """
        yield from options.problems(cls, values)
        for name, taps in chosen_taps(values):
            unknown = [tap for tap in taps if tap not in (*known, LOGITS)[: None if cls.accepts_logits else -1]]
            if unknown:
                yield name, f"{unknown[0]!r} is unknown; {nearest(unknown[0], known)}"
            elif not taps:
                yield name, "at least one tap is needed"
            elif len(set(taps)) < len(taps):
                yield name, "a tap is named twice"
        weights, count = values.get("tap_weights", ()), len(values.get("taps", ()))
        if not all(isinstance(weight, int | float) for weight in weights):
            yield "tap_weights", "expected numbers"
        elif weights and (len(weights) != count or min(weights) < 0 or sum(weights) <= 0):
            yield "tap_weights", f"expected {count} weights of 0 or more, one per tap, not all 0"

    def __call__(self, student: Outputs, teacher: Outputs, label, valid, train: bool = True) -> Terms:
        """Compares the two networks on a batch.

        Args:
          student: gradients flow into it.
          teacher: no gradient flows into it.
          label: [B, H, W] integers, IGNORE_LABEL where there is none.
          valid: [B, H, W] bool, the pixels that both sensors saw.
          train: whether adapters use the statistics of the batch and memories are filled.

        Returns:
          {method: loss} and further numbers whose names start with the method's; float32 scalars, unweighted.

        Raises:
          ConfigError: a tap that one of the networks does not have.
        """
        raise NotImplementedError


def chosen_taps(values: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """(option, taps) of a method's config, from its option "tap" or "taps" if it has one."""
    found = [(name, values[name]) for name in ("tap", "taps") if name in values]
    return [(name, (taps,) if isinstance(taps, str) else tuple(taps)) for name, taps in found]


@flax.struct.dataclass
class Maps:
    """What a tap names, of both networks, on the teacher's grid.

    Attributes:
      student: [B, h, w, C] float32; resized where the student's own grid is another one.
      target: the teacher's, [B, h, w, C'] float32, detached.
      mask: [B, h, w] bool, the valid positions.
      label: [B, h, w] int32, IGNORE_LABEL where there is none.
      classes: their number K.
    """

    student: Any
    target: Any
    mask: Any
    label: Any
    classes: int = flax.struct.field(pytree_node=False)

    @property
    def seen(self):
        """`student` with 0 at invalid positions, for layers that mix positions."""
        return self.student * self.mask[..., None]


def compared(student: Outputs, teacher: Outputs, tap: str, label, valid, method: str) -> Maps:
    """Looks a tap up.

    Raises:
      ConfigError: a tap that either network does not have; names the valid ones.
    """
    mine, theirs = student.maps(), teacher.maps()
    if tap not in mine or tap not in theirs:
        known = ", ".join(name for name in mine if name in theirs)
        raise ConfigError(f"config.distill.{method} compares {tap!r}; the features are {known}")
    target = jax.lax.stop_gradient(theirs[tap]).astype(jnp.float32)
    x, grid = mine[tap].astype(jnp.float32), target.shape[1:3]
    if x.shape[1:3] != grid:
        x = resized(x, mask_at(valid, x.shape[1:3]), grid)
    return Maps(x, target, mask_at(valid, grid), label_at(label, valid, grid), student.logits.shape[-1])


def projected(x, channels: int, name: str):
    """x with so many channels: as it is, or through a 1x1 convolution. To be called in a compact method."""
    return x if x.shape[-1] == channels else nn.Conv(channels, (1, 1), use_bias=False, name=name)(x)


class TapDistiller(Distiller):
    """A method that compares one tap after the other; its loss is the weighted mean over the taps.

    Attributes:
      taps: names of features, where the method allows it LOGITS.
      tap_weights: one per tap; empty for the method's own, which are equal unless it says otherwise.
    """

    own_weights: ClassVar[Mapping[str, float]] = MappingProxyType({})

    taps: tuple[str, ...] = option(("A",), "features compared")
    tap_weights: tuple[float, ...] = ()

    def weights(self) -> tuple[float, ...]:
        """One per tap; they add up to 1."""
        weights = self.tap_weights or tuple(self.own_weights.get(tap, 1.0) for tap in self.taps)
        return tuple(weight / sum(weights) for weight in weights)

    @nn.compact
    def __call__(self, student: Outputs, teacher: Outputs, label, valid, train: bool = True) -> Terms:
        """As `Distiller`; the further numbers are the taps' losses, "<method>_<tap>"."""
        losses = {
            tap: self.compare(tap, compared(student, teacher, tap, label, valid, self.method), train)
            for tap in self.taps
        }
        mean = sum(weight * losses[tap] for weight, tap in zip(self.weights(), self.taps, strict=True))
        return {self.method: mean, **{f"{self.method}_{tap}": loss for tap, loss in losses.items()}}

    def compare(self, tap: str, maps: Maps, train: bool):
        """The loss of one tap, a float32 scalar; what a method overrides."""
        raise NotImplementedError
