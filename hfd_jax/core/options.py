"""Options that a class declares once, with default, meaning and limits.

The fields of the config and their check, the flags of the data tools and the tables of the docs follow from them:

class MyMethod(Distiller):
    temperature: float = option(4.0, "of the softmax", above=0)
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hfd_jax.core.errors import nearest


@dataclasses.dataclass(frozen=True)
class Option:
    """Declaration of one option.

    Attributes:
      default: value unless the config sets another; also determines the type.
      meaning: one phrase for the docs, with the unit or the source of the default.
      above, at_least, at_most: limits of a number, or of every number in a tuple.
      choices: the allowed values, or the allowed members of a tuple.
      rule: a further rule in words, which the class itself checks.
      before: what configs and checkpoints from before the option existed imply; None if that is the default.
    """

    default: Any
    meaning: str
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    choices: Collection[Any] = ()
    rule: str = ""
    before: Any = None

    @property
    def type(self) -> type:
        """The type of the default; an option without a default is a string."""
        return str if self.default is None else type(self.default)

    @property
    def limits(self) -> str:
        """The limits in words, "" if there are none."""
        if self.choices:
            return "one of: " + ", ".join(map(str, self.choices))
        if (self.at_least, self.at_most) == (0, 1):
            return "a share, 0 to 1"
        parts = [f"more than {self.above:g}"] if self.above is not None else []
        parts += [f"{self.at_least:g} or more"] if self.at_least is not None else []
        parts += [f"at most {self.at_most:g}"] if self.at_most is not None else []
        return ", ".join(parts + ([self.rule] if self.rule else []))

    def problem(self, value: Any) -> str | None:
        """Describes why `value` is invalid; None if it is valid."""
        if self.type is tuple and not isinstance(value, tuple | list):
            return f"expected a tuple such as {self.default or (value,)!r}"
        members = value if isinstance(value, tuple | list) else (value,)
        if self.choices:
            wrong = [member for member in members if member not in self.choices]
            return nearest(wrong[0], self.choices) if wrong else None
        numbers = self.type in (int, float) or (
            self.type is tuple and self.default and isinstance(self.default[0], int | float)
        )
        if numbers and not all(isinstance(member, int | float) for member in members):
            return f"expected {'numbers' if self.type is tuple else 'a number'}, such as {self.default!r}"
        return None if all(map(self._is_within, members)) else f"expected {self.limits or 'a finite number'}"

    def _is_within(self, value: Any) -> bool:
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return not (
            (self.above is not None and not value > self.above)
            or (self.at_least is not None and not value >= self.at_least)
            or (self.at_most is not None and not value <= self.at_most)
        )


def option(default: Any, meaning: str, **limits: Any) -> Any:
    """Returns a dataclass field that declares an option; `limits` are the remaining attributes of `Option`."""
    return dataclasses.field(default=default, kw_only=True, metadata={"option": Option(default, meaning, **limits)})


def options_of(cls: type) -> dict[str, Option]:
    """Returns the options of a dataclass (or Linen module) by name, those of its base classes first."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(cls) if "option" in field.metadata}


def defaults(cls: type) -> dict[str, Any]:
    """Maps the name of each option to its default."""
    return {name: declared.default for name, declared in options_of(cls).items()}


def implied(cls: type) -> dict[str, Any]:
    """Maps the name of each option to the value that files without it imply: `before`, or else the default."""
    found = options_of(cls).items()
    return {name: declared.default if declared.before is None else declared.before for name, declared in found}


def problems(cls: type, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (name, problem) for every option whose value is outside its limits."""
    for name, declared in options_of(cls).items():
        why = declared.problem(values[name])
        if why:
            yield name, why
