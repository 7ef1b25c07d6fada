"""Times the steps for each batch size and image size; prints a table, writes JSON and draws a plot."""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax

from configs import default
from hfd_jax.core import logs
from hfd_jax.core.errors import UserError, writing
from hfd_jax.core.parallel import compiler_options
from hfd_jax.train import config_flags
from hfd_jax.train.validate import check_fields
from tools.bench import cases, machine
from tools.bench.cases import Shapes
from tools.bench.timing import Timing, interleaved


@dataclasses.dataclass(frozen=True)
class Row:
    """The timing of one step.

    Attributes:
      name: name of the step, followed by the flavour for a peer.
      batch: pairs per step.
      size: edge of the images, pixels.
      seconds: median time of a call.
      quartiles: first and third quartile of the time, seconds.
      ratio: time relative to the same step in JAX, for a peer; otherwise None.
      compile_seconds, flops, bytes_accessed, memory: see `cases.Case`; None for a peer.
    """

    name: str
    batch: int
    size: int
    seconds: float
    quartiles: tuple[float, float]
    ratio: float | None = None
    compile_seconds: tuple[float, float] | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    memory: int | None = None

    @property
    def images(self) -> float:
        """Images per second."""
        return self.batch / self.seconds

    @property
    def megapixels(self) -> float:
        """Megapixels per second."""
        return self.batch * self.size**2 / self.seconds / 1e6


def measure(arguments: argparse.Namespace, what: Sequence[str]) -> None:
    config = default.get_config() if config_flags.given() is None else config_flags.config(default.get_config())
    config = config.copy_and_resolve_references()
    if arguments.dtype:
        config.dtype = arguments.dtype
    devices = jax.local_devices()[: arguments.devices]
    check(config, arguments, len(devices))
    with tempfile.TemporaryDirectory() as cache:
        # A separate cache, so that it is empty at the first compilation.
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        rows, differences = [], {}
        for batch, size in itertools.product(arguments.batch, arguments.size):
            shapes = Shapes(batch, size, arguments.sar_bands, arguments.eo_bands, arguments.num_classes)
            config.data.crop = size  # as in training, where the input has the size of the crop
            print(f"batch {batch}, {size} x {size}: compiling and timing {', '.join(what)} ...", flush=True)
            found, differences = time_steps(config, shapes, what, devices, arguments)
            rows += found
        peaks = machine.peaks(config.dtype)
        if jax.default_backend() != "cpu":  # on the CPU, all devices share one machine
            peaks = {name: value * len(devices) for name, value in peaks.items()}
    about = machine.describe(len(devices)) | {
        "network": f"ResNet-{config.model.depth} width {config.model.width}, {config.dtype}",
        "compiler_options": compiler_options(),
        "peaks": peaks,
        "largest_difference_to_peer": differences,
    }
    print(table(rows, about))
    if arguments.json:
        with writing(arguments.json), open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"about": about, "rows": [dataclasses.asdict(row) for row in rows]}, file, indent=2)
        print(f"written to {arguments.json}")
    if arguments.plot:
        plot(rows, arguments.plot)
        print(f"written to {arguments.plot}")


def check(config, arguments: argparse.Namespace, devices: int) -> None:
    """Raises UserError if the shapes are invalid or the peer is not installed, before anything is compiled."""
    config.data.batch_size = config.eval.batch_size = 16 * devices  # valid values; the timing uses --batch
    check_fields(config, devices)
    if arguments.peer and importlib.util.find_spec(arguments.peer) is None:
        raise UserError(f"--peer={arguments.peer} needs PyTorch, which is not installed: pip install torch")
    if arguments.devices and arguments.devices > devices:
        raise UserError(f"--devices={arguments.devices}: expected at most {devices}, the devices of this process")
    for batch in arguments.batch:
        if batch < 1 or batch % devices:
            raise UserError(f"--batch={batch}: expected a multiple of the {devices} devices")
    for size in arguments.size:
        if size < 64 or size % 32:
            raise UserError(f"--size={size}: expected a multiple of 32, 64 or more")


def time_steps(config, shapes: Shapes, what: Sequence[str], devices, arguments) -> tuple[list[Row], dict[str, float]]:
    """Returns the rows of all steps, with the peer's if requested, and the largest differences to the peer."""
    own = {name: make_case(config, shapes, name, devices) for name in what}
    calls: dict[str, Callable[[], Any]] = {name: case.call for name, case in own.items()}
    differences = {}
    if arguments.peer:
        of_peer, differences = peer_calls(config, shapes, what, arguments.peer_compile)
        calls |= of_peer
    timings = interleaved(calls, arguments.seconds, arguments.rounds)
    if arguments.trace:
        with jax.profiler.trace(arguments.trace):
            for case in own.values():
                for _ in range(3):
                    case.call()
        print(f"trace written to {arguments.trace}")
    return [make_row(name, shapes, timing, timings, own) for name, timing in timings.items()], differences


def make_case(config, shapes: Shapes, name: str, devices) -> cases.Case:
    if name == "inference":
        return cases.inference_case(config, shapes, devices)
    return cases.training_case(config, shapes, name, devices)


def make_row(name: str, shapes: Shapes, timing: Timing, timings: dict[str, Timing], own: dict[str, cases.Case]) -> Row:
    step = name.split(" ")[0]
    row = Row(name, shapes.batch, shapes.size, timing.median, timing.spread)
    if name not in own:
        return dataclasses.replace(row, ratio=timing.median / timings[step].median)
    case = own[name]
    return dataclasses.replace(
        row,
        compile_seconds=case.compile_seconds,
        flops=case.flops,
        bytes_accessed=case.bytes_accessed,
        memory=case.memory,
    )


def peer_calls(config, shapes: Shapes, what: Sequence[str], compiled: bool):
    """Returns (name with flavour -> call, largest differences).

    Raises:
      UserError: If the peer does not support the config.
    """
    from tools.bench.peer import Flavour, Peer  # PyTorch is optional

    peer = Peer(config, shapes)
    calls = {}
    for name, mode, bf16 in itertools.product(what, (False, True) if compiled else (False,), (False, True)):
        flavour = Flavour(mode, bf16)
        make = peer.inference_call if name == "inference" else lambda f, name=name: peer.training_call(name, f)
        calls[f"{name} {flavour.name}"] = make(flavour)
    return calls, peer.largest_difference()


def table(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Formats the machine, one line per row, and the ratios."""
    peaks = about["peaks"]
    lines = [
        f"{about['device']} ({about['backend']}, {about['devices']} device(s)), jax {about['jax']}, {about['network']}",
        f"measured peaks: matrix product {peaks['flops'] / 1e9:.0f} GFLOP/s, copy {peaks['bandwidth'] / 1e9:.1f} GB/s",
        "",
    ]
    header = ["step", "batch", "size", "ms", "quartiles", "images/s", "Mpx/s"]
    header += ["ratio", "GFLOP", "of matmul", "of copy", "MiB", "compile s", "cached s"]
    cells = [header]
    for row in rows:
        quartiles = "-".join(f"{value * 1e3:.1f}" for value in row.quartiles)
        line = [row.name, str(row.batch), str(row.size), f"{row.seconds * 1e3:.1f}", quartiles]
        line += [f"{row.images:.1f}", f"{row.megapixels:.2f}", f"{row.ratio:.2f}" if row.ratio else ""]
        if row.flops is not None:
            line += [f"{row.flops / 1e9:.1f}", f"{row.flops / row.seconds / peaks['flops']:.0%}"]
            line += [f"{row.bytes_accessed / row.seconds / peaks['bandwidth']:.0%}", f"{row.memory / 2**20:.0f}"]
            line += [f"{value:.1f}" for value in row.compile_seconds]
        cells.append(line + [""] * (len(header) - len(line)))
    lines.append(logs.columns(cells))
    lines += ["", *ratios(rows)]
    if about["largest_difference_to_peer"]:
        parts = ", ".join(f"{name} {value:.1e}" for name, value in about["largest_difference_to_peer"].items())
        lines.append(f"largest relative difference to the peer with the same weights in float32: {parts}")
    return "\n".join(lines)


def ratios(rows: Sequence[Row]) -> list[str]:
    """Returns the cost of the frozen teacher for each batch and size with both steps."""
    found = {(row.name, row.batch, row.size): row.seconds for row in rows}
    return [
        f"student step / SAR-only step, batch {batch}, {size} x {size}: {seconds / found['sar_step', batch, size]:.2f}"
        for (name, batch, size), seconds in found.items()
        if name == "student_step" and ("sar_step", batch, size) in found
    ]


def plot(rows: Sequence[Row], path: str) -> None:
    """Plots speed and memory against the batch size, one line per step and image size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    for name, size in dict.fromkeys((row.name, row.size) for row in rows):
        line = [row for row in rows if (row.name, row.size) == (name, size)]
        label = f"{name}, {size} x {size}"
        speed.plot([row.batch for row in line], [row.megapixels for row in line], "o-", label=label)
        if line[0].memory is not None:
            memory.plot([row.batch for row in line], [row.memory / 2**20 for row in line], "o-", label=label)
    for axes, title in ((speed, "speed, Mpixel/s"), (memory, "memory, MiB")):
        axes.set(xlabel="batch", ylabel=title, xscale="log", ylim=(0, None))
        batches = sorted({row.batch for row in rows})
        axes.set_xticks(batches, [str(batch) for batch in batches], minor=False)
        axes.grid(alpha=0.3)
        axes.minorticks_off()
    figure.legend(
        *speed.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small", frameon=False
    )
    with writing(path):
        figure.savefig(path, dpi=120)
