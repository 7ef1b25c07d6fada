"""The base class of the readers in `registry.py`, and how a reader declares its command-line options."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hfd_jax.data.tiles import Relisted

if TYPE_CHECKING:
    from hfd_jax.data.builder import PairedTiles


def option(default: Any, help_text: str, choices: Sequence[Any] | None = None) -> Any:
    """A dataclass field that is also a command-line option of the tools.

    Args:
      default: value if the option is not given; its type parses the text. None stands for an optional string.
      help_text: shown by --help.
      choices: accepted values; default: all.
    """
    return dataclasses.field(default=default, metadata={"help": help_text, "choices": choices})


@dataclasses.dataclass(frozen=True)
class Option:
    """A command-line option as declared with `option`."""

    default: Any
    help: str
    choices: tuple[Any, ...] | None

    @property
    def type(self) -> type:
        return str if self.default is None else type(self.default)


def options_of(declaring: type) -> Mapping[str, Option]:
    """Name -> option for every field of the dataclass `declaring` that was made with `option`."""
    options = {}
    for field in dataclasses.fields(declaring):
        if "help" in field.metadata:
            choices = field.metadata["choices"]
            options[field.name] = Option(field.default, field.metadata["help"], choices and tuple(choices))
    return options


class Reader(Relisted):
    """A raw data set in a folder: a `TileSource` that the tools can select by name.

    A subclass is a dataclass. Its first field is `raw_dir`, the folder with the raw data; fields declared with `option`
    become command-line options. It must also provide `name`, `facts`, `settings`, `keys` and `read` of `TileSource`.

    Attributes:
      builder: TFDS builder that writes the prepared data set; its name in snake case becomes the folder below data_dir.
      left_out: reason -> number of raw tiles that belong to no split.
    """

    builder: ClassVar[type["PairedTiles"]]
    left_out: ClassVar[dict[str, int]] = {}

    @staticmethod
    def recognise(raw_dir: str) -> bool:
        """Returns whether the folder `raw_dir` has the layout of this data set. By default no layout is recognised."""
        del raw_dir
        return False
