"""Where arrays live and how steps are compiled: one interface, two implementations.

`Jit` (default) shards the batch over a mesh and lets the compiler insert the communication: batch statistics, losses
and metrics are computed over the whole batch. `Pmap` runs one copy per device with explicit collectives and gives the
same numbers. Both take host batches and replicated trees, so callers need not know which one is in use.
"""

import errno
import functools
import hashlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hfd_jax.core.collectives import AXIS
from hfd_jax.core.errors import ConfigError
from hfd_jax.core.platform import compiling_for

KINDS = ("jit", "pmap")


class Jit:
    """Data parallelism by sharding: jax.jit over a one-dimensional mesh of `devices` (default: all)."""

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        devices = np.array(devices or jax.devices())
        self.mesh = jax.sharding.Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))
        self._whole = NamedSharding(self.mesh, PartitionSpec())
        self._split = NamedSharding(self.mesh, PartitionSpec(AXIS))
        self.local_devices = len(self.mesh.local_devices)
        self._platform = devices.flat[0].platform
        self._options = compiler_options(self._platform)

    def init(self, function: Callable, *args) -> Any:
        """Runs an initialiser and replicates its outputs; jit creates them directly on the devices."""
        return jax.jit(self._traced(function), out_shardings=self._whole, compiler_options=self._options)(*args)

    def train_step(self, function: Callable) -> Callable:
        """Compiles (state, teacher, batch) -> (state, metrics); the state is donated."""
        return self._compile(function, 3, donate_argnums=0)

    def eval_step(self, function: Callable) -> Callable:
        """Compiles (variables, batch) -> sums over the whole batch."""
        return self._compile(function, 2)

    def map_step(self, function: Callable) -> Callable:
        """Compiles (variables, batch) -> array [B, ...]; each entry stays on the device of its sample."""
        return jax.jit(
            self._traced(function),
            in_shardings=(self._whole, self._split),
            out_shardings=self._split,
            compiler_options=self._options,
        )

    def replicate(self, tree: Any) -> Any:
        """Puts a tree of host arrays on every device."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._whole, np.asarray(x)), tree)

    def single(self, tree: Any) -> Any:
        """Returns one copy of a replicated tree, in the form that checkpoints store."""
        return tree

    def local(self, tree: Any) -> Any:
        """Returns one copy of a replicated tree, on a device of this process."""
        return jax.tree.map(lambda x: x.addressable_data(0), tree)

    def abstract(self, tree: Any) -> Any:
        """Returns shapes, dtypes and shardings of `single(tree)`, to restore a checkpoint with."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._whole), tree)

    def placed(self, restored: Any) -> Any:
        """Converts a tree restored with `abstract` to the form that the steps take."""
        return restored

    def shard(self, batch: dict) -> dict:
        """Puts this process's part of a batch on its devices."""
        return {k: jax.make_array_from_process_local_data(self._split, x) for k, x in batch.items()}

    def _compile(self, function, arguments, **kwargs):
        shardings = (*(self._whole,) * (arguments - 1), self._split)
        return jax.jit(
            self._traced(function),
            in_shardings=shardings,
            out_shardings=self._whole,
            compiler_options=self._options,
            **kwargs,
        )

    def _traced(self, function):
        """Tells the function, while it is traced, which platform it is compiled for."""

        @functools.wraps(function)
        def run(*args):
            with compiling_for(self._platform):
                return function(*args)

        return run


class Pmap:
    """Data parallelism by jax.pmap over `devices` (default: all): trees carry a leading device axis."""

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        self._devices = devices
        local = list(devices or jax.local_devices())
        self.local_devices = len(local)
        mesh = jax.sharding.Mesh(np.array(local), (AXIS,), axis_types=(AxisType.Auto,))
        self._stacked = NamedSharding(mesh, PartitionSpec(AXIS))

    def init(self, function: Callable, *args) -> Any:
        return self.replicate(jax.jit(function, compiler_options=compiler_options())(*args))

    def train_step(self, function: Callable) -> Callable:
        step = jax.pmap(function, axis_name=AXIS, devices=self._devices, donate_argnums=0)

        def run(state, teacher, batch):
            state, metrics = step(state, teacher, batch)
            return state, self.single(metrics)

        return run

    def eval_step(self, function: Callable) -> Callable:
        step = jax.pmap(function, axis_name=AXIS, devices=self._devices)
        return lambda variables, batch: self.single(step(variables, batch))

    def map_step(self, function: Callable) -> Callable:
        step = jax.pmap(function, axis_name=AXIS, devices=self._devices)

        def run(variables, batch):
            parts = step(variables, batch)
            return parts.reshape(-1, *parts.shape[2:])

        return run

    def replicate(self, tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.device_put(np.broadcast_to(x, (self.local_devices, *np.shape(x))), self._stacked), tree
        )

    def single(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x.addressable_data(0).squeeze(0), tree)

    local = single

    def abstract(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)

    def placed(self, restored: Any) -> Any:
        return self.replicate(restored)

    def shard(self, batch: dict) -> dict:
        return {
            k: jax.device_put(x.reshape(self.local_devices, -1, *x.shape[1:]), self._stacked) for k, x in batch.items()
        }


def make_parallel(kind: str, devices: Sequence[jax.Device] | None = None) -> Jit | Pmap:
    """Returns the implementation named `kind`, one of KINDS."""
    return {"jit": Jit, "pmap": Pmap}[kind](devices)


@functools.cache
def compiler_options(platform: str = "") -> dict[str, str]:
    """Returns compiler settings that speed up a platform; empty if the compiler does not know them.

    On the CPU, XLA by default passes convolutions to a library that is slower than its own code; with these settings
    it passes only reductions.

    Args:
      platform: platform of the devices that run the program; default: that of JAX's default devices.
    """
    if (platform or jax.default_backend()) != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(jnp.zeros(())).compile()
    except Exception:  # noqa: BLE001 - an experimental setting: any error means that it is not supported
        return {}
    return options


def join_processes(distributed: bool) -> None:
    """Connects the processes of a distributed run; call before any device is used.

    JAX detects the processes under SLURM, Open MPI, Kubernetes and on Cloud TPU. Elsewhere set the environment
    variables JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      ConfigError: no other processes were found.
    """
    if not distributed:
        return
    count, index = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=int(count) if count else None, process_id=int(index) if index else None
        )
    except ValueError as error:
        raise ConfigError(
            "config.distributed is True, but no other processes were found: expected SLURM, Open MPI, Kubernetes, a "
            f"Cloud TPU, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID ({error})"
        ) from error


def wait_for_all(what: str) -> None:
    """Waits until every process has arrived here; `what` names the barrier."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def same_everywhere(number: int) -> bool:
    """Whether all processes pass the same number."""
    return bool(np.all(multihost_utils.process_allgather(np.int32(number)) == number))


def enable_compilation_cache() -> None:
    """Caches compiled programs in the user's cache folder unless JAX_COMPILATION_CACHE_DIR is set.

    A program compiled for one processor may crash on another, so each kind of processor has its own folder. Without a
    folder that can be written, such as in a container without a home folder, nothing is cached.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        kind = hashlib.sha1(_processor().encode()).hexdigest()[:12]
    folder = os.path.join(root, "hfd_jax", f"{jax.default_backend()}-{kind}")
    try:
        if not os.path.isabs(root):  # no home folder: the "~" is still there
            raise FileNotFoundError(errno.ENOENT, "no home folder")
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        logging.warning(
            "%s: compiled programs are not cached (%s); JAX_COMPILATION_CACHE_DIR can name a folder",
            root,
            error.strerror,
        )
        return
    jax.config.update("jax_compilation_cache_dir", folder)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return platform.processor() + platform.machine()


def prefetch(batches: Iterable[dict], start: Callable[[dict], dict], depth: int = 2) -> Iterator[dict]:
    """Starts work on up to `depth` batches ahead of the current one; closing the generator closes `batches` too.

    Args:
      batches: host batches.
      start: begins the transfer to the devices, or transfer and computation, and returns without waiting for it.
      depth: number of batches ahead; each takes memory on the devices.
    """
    waiting: list[dict] = []
    try:
        for batch in batches:
            waiting.append(start(batch))
            if len(waiting) > depth:
                yield waiting.pop(0)
        yield from waiting
    finally:
        if hasattr(batches, "close"):
            batches.close()
