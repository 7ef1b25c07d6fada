"""The base class of the readers in `registry.py`."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hfd_jax.core import options
from hfd_jax.data.tiles import Relisted

if TYPE_CHECKING:
    from hfd_jax.data.builder import PairedTiles


class Reader(Relisted):
    """A raw data set in a folder: a `TileSource` that the tools can select by name.

    A subclass is a dataclass. Its first field is `raw_dir`, the folder with the raw data; fields declared with
    `core.options.option` become command-line options, which `problems` checks. It must also provide `name`, `facts`,
    `settings`, `keys` and `read` of `TileSource`.

    Attributes:
      builder: TFDS builder that writes the prepared data set; its name in snake case becomes the folder below data_dir.
      left_out: reason -> number of raw tiles that belong to no split.
      notes: remarks for the user, for example about files that belong to no tile.
    """

    builder: ClassVar[type["PairedTiles"]]
    left_out: ClassVar[dict[str, int]] = {}
    notes: ClassVar[list[str]] = []

    @classmethod
    def problems(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yields (option, problem) for each invalid value of the options; subclasses may add rules."""
        yield from options.problems(cls, values)

    @staticmethod
    def recognise(raw_dir: str) -> bool:
        """Returns whether the folder `raw_dir` has the layout of this data set. By default no layout is recognised."""
        del raw_dir
        return False
