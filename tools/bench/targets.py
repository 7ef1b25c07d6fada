"""Accelerators that programs can be compiled for without having one: their published values and their compilers."""

import dataclasses
import importlib.util
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfd_jax.core.errors import UserError

DESCRIPTIONS = Path(__file__).parent / "devices"


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published values of one chip. Operations are dense ones, without structured sparsity.

    Attributes:
      title: its name.
      platform: JAX's name of the platform.
      extra: extra of this package that installs its compiler.
      modules: Python modules that make up the compiler.
      flops: operations per second of a matrix product, by the dtype of its factors, at JAX's default precision.
      bandwidth: bytes per second from and to its memory.
      memory: bytes of its memory.
      links: (number of chips, bytes per second in one direction of a chip's link among at most so many).
      description: file that describes it to the compiler; "" if the compiler knows it.
    """

    title: str
    platform: str
    extra: str
    modules: tuple[str, ...]
    flops: dict[str, float]
    bandwidth: float
    memory: int
    links: tuple[tuple[int, float], ...]
    description: str = ""


CUDA = ("jax_plugins.xla_cuda13", "jax_cuda13_plugin", "nvidia.cu13")
# NVIDIA H100 SXM data sheet (float32 products are rounded to TF32; NVLink within 8, beyond them one 400 Gbit/s adapter
# per GPU) and cloud.google.com/tpu/docs/v6e (float32 factors are rounded to bfloat16; half of a chip's links send).
CHIPS = {
    "h100": Chip(
        "NVIDIA H100 80GB",
        "cuda",
        "plan-gpu",
        CUDA,
        {"bfloat16": 989e12, "float32": 495e12},
        3.35e12,
        84929347584,
        ((8, 450e9), (1 << 20, 50e9)),
        "h100.txtpb",
    ),
    "v5e": Chip(
        "TPU v5e",
        "tpu",
        "plan-tpu",
        ("libtpu",),
        {"bfloat16": 197e12, "float32": 197e12},
        819e9,
        16 * 10**9,
        ((256, 1600e9 / 8 / 2),),
    ),
    "v6e": Chip(
        "TPU v6e",
        "tpu",
        "plan-tpu",
        ("libtpu",),
        {"bfloat16": 918e12, "float32": 918e12},
        1640e9,
        32 * 10**9,
        ((256, 3584e9 / 8 / 2),),
    ),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Several chips of one kind.

    Attributes:
      name: key of CHIPS.
      grid: number of chips along each axis.
    """

    name: str
    grid: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name]

    @property
    def count(self) -> int:
        return math.prod(self.grid)

    @property
    def title(self) -> str:
        return f"{self.count} x {self.chip.title}"

    def link(self, count: int) -> float:
        """Bytes per second in one direction of each chip's link among `count` chips.

        Raises:
          UserError: no link joins so many.
        """
        for most, speed in self.chip.links:
            if count <= most:
                return speed
        raise UserError(f"--scaling={count}: expected at most {self.chip.links[-1][0]} chips of {self.chip.title}")


def parse(text: str) -> Target:
    """Returns the target named like "h100:4" or "v5e:2x4".

    Raises:
      UserError: no such target.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text or "")
    grid = tuple(int(number) for number in found[2].split("x")) if found else ()
    if not found or found[1] not in CHIPS or min(grid) < 1:
        raise UserError(f"--target={text}: expected a chip ({', '.join(CHIPS)}) and a number, as h100:4 or v5e:2x4")
    target = Target(found[1], grid)
    if target.chip.platform == "tpu" and len(grid) != 2:
        raise UserError(f"--target={text}: expected the chips along two axes, as {target.name}:2x4")
    return target


def check_compiler(target: Target) -> None:
    """Raises UserError if the target's compiler is not installed."""
    missing = [name for name in target.chip.modules if not installed(name)]
    if missing:
        raise UserError(
            f"--target={target.name}: the compiler for {target.chip.title} is not installed ({missing[0]} not found): "
            f'pip install -e ".[{target.chip.extra}]"'
        )


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def environment(target: Target) -> dict[str, str]:
    """Returns the variables that have to be set before JAX starts, so that it uses the compiler but no device."""
    wanted = {"JAX_PLATFORMS": "cpu"}
    if target.chip.platform == "tpu":
        return wanted | {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-8" if target.name == "v5e" else "v6e-8",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
        }
    flag = "--xla_gpu_enable_triton_gemm=false"  # its tiles are chosen by measuring on the device
    given = os.environ.get("XLA_FLAGS", "").split()
    return wanted | {"XLA_FLAGS": " ".join([word for word in given if word != flag] + [flag])}


def ensure_environment(target: Target) -> None:
    """Starts the same command again with the `environment` of a target if this process lacks it."""
    wanted = environment(target)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)


def devices(target: Target) -> Sequence[Any]:
    """Returns the target's devices, which programs can be compiled for but not run on."""
    from jax.experimental import topologies

    shape = "x".join(str(number) for number in target.grid)
    if target.chip.platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=f"{target.name}:{shape}").devices
    options = {"target_config": (DESCRIPTIONS / target.chip.description).read_text(encoding="utf-8")}
    # Slices, processes of each, devices of each process: one process has them all, as a single machine does.
    options["topology"] = f"1x1x{target.count}"
    return topologies.get_topology_desc("topology", platform=target.chip.platform, **options).devices
