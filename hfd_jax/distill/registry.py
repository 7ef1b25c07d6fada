"""The distillation methods by name, and their combination."""

import dataclasses
from typing import Any

import flax.linen as nn

from hfd_jax.distill.aicsd import AICSD
from hfd_jax.distill.attention import AttentionTransfer
from hfd_jax.distill.base import LOGITS, Outputs, Terms
from hfd_jax.distill.cirkd import CIRKD
from hfd_jax.distill.cwd import CWD
from hfd_jax.distill.disoptnet import DisOptNet
from hfd_jax.distill.fakd import FAKD
from hfd_jax.distill.fitnet import FitNet
from hfd_jax.distill.hfd import HFD
from hfd_jax.distill.ifvd import IFVD
from hfd_jax.distill.kd import KD
from hfd_jax.distill.mgd import MGD
from hfd_jax.distill.nfd import NFD
from hfd_jax.distill.skd import SKD

METHODS: dict[str, Any] = {
    cls.method: cls
    for cls in (
        HFD, KD, FitNet, AttentionTransfer, CWD, SKD, IFVD, NFD, CIRKD, AICSD, MGD, FAKD, DisOptNet,
    )
}  # fmt: skip
COLLECTIONS = ("params", "batch_stats", "memory")
Variables = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Combined:
    """Runs several methods on the same outputs; each method keeps its variables under its name.

    Attributes:
      methods: the modules, each a `Distiller`.
    """

    methods: tuple[nn.Module, ...]

    @property
    def taps(self) -> tuple[str, ...]:
        """The teacher's features that any method compares, without duplicates."""
        return tuple(dict.fromkeys(tap for module in self.methods for tap in module.taps if tap != LOGITS))

    def init(self, key, student: Outputs, teacher: Outputs, label, valid) -> Variables:
        """Returns {collection: {method: ...}}; the initial values of a method do not depend on the other methods."""
        found = {
            module.method: module.init({"params": key, "noise": key}, student, teacher, label, valid)
            for module in self.methods
        }
        return _by_collection(found)

    def apply(
        self, variables: Variables, student: Outputs, teacher: Outputs, label, valid, key
    ) -> tuple[Terms, Variables]:
        """Returns the terms of all methods and the updated collections.

        Args:
          variables: as returned by `init`.
          student, teacher, label, valid: see `Distiller`.
          key: random key of the step, the same on all devices.
        """
        terms, changed = {}, {}
        for module in self.methods:
            own = {name: tree[module.method] for name, tree in variables.items() if module.method in tree}
            found, changed[module.method] = module.apply(
                own, student, teacher, label, valid, mutable=["batch_stats", "memory"], rngs={"noise": key}
            )
            terms |= found
        return terms, _by_collection(changed)


def _by_collection(found: dict[str, Any]) -> Variables:
    """{method: {collection: ...}} -> {collection: {method: ...}}, where every collection is present."""
    return {
        collection: {method: tree[collection] for method, tree in found.items() if collection in tree}
        for collection in COLLECTIONS
    }
