"""Compiles the steps for accelerators that need not be there, and tells what they need and how fast they can be.

Nothing is executed: the programs are compiled from the shapes of their arguments. The time is a lower bound (roofline):
operations at the peak rate, or bytes at the peak bandwidth, whichever takes longer. The bytes assume that each kernel
reads its operands and writes its results once, without any cache.
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from configs import default
from hfd_jax.core import logs
from hfd_jax.core.errors import UserError, writing
from hfd_jax.core.parallel import Jit
from hfd_jax.evaluation import steps as evaluation_steps
from hfd_jax.models.folding import fold
from hfd_jax.train import config_flags, steps
from hfd_jax.train.networks import baseline_spec
from hfd_jax.train.state import init_fn
from tools.bench import cases, hlo, targets
from tools.bench.cases import Shapes
from tools.bench.run import check
from tools.bench.targets import Target

STEPS = (*cases.NETWORKS, "inference")
PRODUCTS = ("dot_general", "conv_general_dilated")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step compiled for a target. Bytes, operations and times are those of one chip.

    Attributes:
      name: name of the step.
      arguments, temporaries, code: bytes of memory.
      results: bytes of the results that do not reuse an argument's memory.
      memory: bytes of the chip's memory.
      flops: operations of convolutions and matrix products.
      moved: bytes read and written by all kernels.
      kernels: number of kernels.
      compute_seconds, memory_seconds: time of the operations and of the bytes at the chip's peaks.
      collectives: operation -> (number, bytes).
      suspects: (kind, module, number, bytes), see `hlo`.
      aliased, state_arrays: number of results in the memory of an argument, and of arrays in the training state.
      compile_seconds: time of tracing and compilation.
    """

    name: str
    arguments: int
    temporaries: int
    code: int
    results: int
    memory: int
    flops: float
    moved: int
    kernels: int
    compute_seconds: float
    memory_seconds: float
    collectives: dict[str, tuple[int, int]]
    suspects: list[tuple[str, str, int, int]]
    aliased: int
    state_arrays: int
    compile_seconds: float

    @property
    def held(self) -> int:
        """Bytes of memory in use at the peak."""
        return self.arguments + self.temporaries + self.code + self.results

    @property
    def fits(self) -> bool:
        return self.held <= self.memory

    @property
    def seconds(self) -> float:
        """Lower bound of the time, without collectives."""
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def bound(self) -> str:
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"

    def communication(self, link: float, count: int) -> float:
        """Seconds of the collectives among `count` chips with links of `link` bytes per second, without latency."""
        around = (count - 1) / count
        passes = {"all-reduce": 2 * around, "reduce-scatter": around * count, "collective-permute": 1.0}
        return sum(passes.get(name, around) * size for name, (_, size) in self.collectives.items()) / link


def measure(arguments: argparse.Namespace) -> None:
    """Compiles the steps, prints the tables and writes the JSON."""
    what = arguments.steps.split(",")
    unknown = [name for name in what if name not in STEPS]
    if unknown:
        raise UserError(f"--steps={unknown[0]} is unknown; expected one or more of {', '.join(STEPS)}")
    target = targets.parse(arguments.target)
    targets.check_compiler(target)
    targets.ensure_environment(target)
    config = default.get_config() if config_flags.given() is None else config_flags.config(default.get_config())
    config = config.copy_and_resolve_references()
    if arguments.dtype:
        config.dtype = arguments.dtype
    (batch, *more), (size, *larger) = arguments.batch, arguments.size
    if more or larger:
        raise UserError("--what=plan takes one --batch and one --size")
    check_scaling(arguments, target)
    check(config, arguments, target.count)
    config.data.crop = size
    shapes = Shapes(batch, size, arguments.sar_bands, arguments.eo_bands, arguments.num_classes)
    devices = targets.devices(target)
    plans = []
    for name in what:
        print(f"compiling {name} for {target.title} ...", flush=True)
        plan, text = make_plan(config, shapes, name, target, devices)
        plans.append(plan)
        if arguments.programs:
            path = f"{arguments.programs}/{name}_{target.name}.txt"
            with writing(path), open(path, "w", encoding="utf-8") as file:
                file.write(text)
    network = f"{config.model.architecture}, ResNet-{config.model.depth} width {config.model.width}, {config.dtype}"
    print(f"\n{target.title}, jax {jax.__version__}, {network}, batch {batch}, {size} x {size}; per chip:\n")
    print(table(plans))
    print(f"\nsuspects (copies and transposes from {hlo.LARGE >> 20} MiB on):\n\n{suspects_table(plans)}")
    if arguments.scaling:
        print(f"\nweak scaling, batch per chip as above:\n\n{scaling(plans, target, arguments.scaling)}")
    if arguments.json:
        about = {"target": arguments.target, "jax": jax.__version__, "network": network, "batch": batch, "size": size}
        with writing(arguments.json), open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"about": about, "plans": [dataclasses.asdict(plan) for plan in plans]}, file, indent=2)
        print(f"written to {arguments.json}")


def check_scaling(arguments: argparse.Namespace, target: Target) -> None:
    """Raises UserError if the weak scaling cannot be derived from the target's program."""
    if arguments.scaling and target.count == 1:
        raise UserError(f"--scaling needs the collectives of a program for several chips, as --target={target.name}:4")
    for count in arguments.scaling or ():
        target.link(count)


def make_plan(
    config: ConfigDict, shapes: Shapes, name: str, target: Target, devices: Sequence[Any]
) -> tuple[Plan, str]:
    """Compiles one of STEPS for devices of a target; also returns the compiled program's text."""
    chip, start = target.chip, time.perf_counter()
    function, arguments = abstract_step(config, shapes, name, Jit(devices))
    traced = function.trace(*arguments)
    compiled = traced.lower().compile()
    seconds, memory = time.perf_counter() - start, compiled.memory_analysis()
    text = compiled.as_text()
    program = hlo.Program(text)
    flops, moved = operations(traced.jaxpr) / target.count, program.moved()
    plan = Plan(
        name,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory=chip.memory,
        flops=flops,
        moved=moved,
        kernels=sum(1 for _ in program.kernels()),
        compute_seconds=flops / chip.flops[config.dtype],
        memory_seconds=moved / chip.bandwidth,
        collectives=program.collectives(),
        suspects=hlo.grouped(program.suspects()),
        aliased=program.aliased,
        state_arrays=0 if name == "inference" else len(jax.tree.leaves(arguments[0])),
        compile_seconds=seconds,
    )
    return plan, text


def abstract_step(config: ConfigDict, shapes: Shapes, name: str, parallel: Jit) -> tuple[Any, tuple]:
    """Returns one of STEPS as a jitted function, and the shapes of its arguments."""
    batch = {key: jax.ShapeDtypeStruct(*layout) for key, layout in cases.batch_layout(shapes).items()}
    if name == "inference":
        setup = cases.make_setup(config, shapes, baseline_spec("sar_only"))
        variables = initial(setup.model, shapes.sar_bands)
        return parallel.eval_step(evaluation_steps.predict_step(setup.model, setup.inputs, "sar")), (variables, batch)
    spec = cases.NETWORKS[name](config)
    setup = cases.make_setup(config, shapes, spec)
    bands, reference = getattr(shapes, f"{spec.sensor}_bands"), (setup.teacher, shapes.eo_bands)
    state = jax.eval_shape(init_fn(setup.model, setup.tx, bands, setup.distiller, reference), jax.random.key(0))
    teacher: Any = {}
    if setup.objective.distils:
        frozen = jax.eval_shape(lambda tree: fold(setup.teacher, tree), initial(setup.teacher, shapes.eo_bands))
        teacher = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, setup.teacher.dtype), frozen)
    return parallel.train_step(steps.train_step(setup)), (state, teacher, batch)


def initial(model: Any, bands: int) -> Any:
    """The shapes of a network's variables."""
    return jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 64, 64, bands))), jax.random.key(0))


def operations(jaxpr: Any) -> float:
    """Counts the operations (two per multiplication) of the matrix products and convolutions in a traced function.

    Positions that padding or dilation fills with zeros count, except those between the elements of a dilated input.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name in PRODUCTS:
            total += product_operations(equation)
            continue
        parts = [part for part in jax.tree.leaves(list(equation.params.values())) if hasattr(part, "eqns")]
        inner = [operations(part) for part in parts]
        total += max(inner) if equation.primitive.name == "cond" else sum(inner)
    return total


def product_operations(equation: Any) -> float:
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    result = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2.0 * result * math.prod(left[axis] for axis in contracted)
    layout = equation.params["dimension_numbers"].rhs_spec  # output features, input features, space
    reach = math.prod(right[axis] for axis in layout[1:]) / math.prod(equation.params["lhs_dilation"])
    return 2.0 * result * reach


def table(plans: Sequence[Plan]) -> str:
    """One line per step: memory, whether it fits, operations, bytes, lower bound of the time, collectives."""
    header = ["step", "arguments", "temporaries", "code", "results", "GiB of", "fits", "TFLOP", "GB", "kernels"]
    header += ["compute ms", "memory ms", "bound by", "collectives", "MB", "donated", "compile s"]
    lines = [header]
    for plan in plans:
        sizes = (plan.arguments, plan.temporaries, plan.code, plan.results, plan.memory)
        collectives = " + ".join(f"{count} {name}" for name, (count, _) in plan.collectives.items()) or "none"
        line = [plan.name, *(f"{size / 2**30:.2f}" for size in sizes), "yes" if plan.fits else "NO"]
        line += [f"{plan.flops / 1e12:.2f}", f"{plan.moved / 1e9:.1f}", str(plan.kernels)]
        line += [f"{plan.compute_seconds * 1e3:.1f}", f"{plan.memory_seconds * 1e3:.1f}", plan.bound, collectives]
        line += [f"{sum(size for _, size in plan.collectives.values()) / 1e6:.1f}"]
        line += [f"{plan.aliased} of {plan.state_arrays}" if plan.state_arrays else "", f"{plan.compile_seconds:.0f}"]
        lines.append(line)
    return logs.columns(lines)


def suspects_table(plans: Sequence[Plan], most: int = 5) -> str:
    """The sums of each kind of suspect, and its `most` largest modules."""
    lines = [["step", "suspect", "number", "MiB", "module"]]
    for plan in plans:
        for kind in dict.fromkeys(row[0] for row in plan.suspects):
            rows = [row for row in plan.suspects if row[0] == kind]
            parts = [(sum(row[2] for row in rows), sum(row[3] for row in rows), "all")]
            parts += [(count, size, module) for _, module, count, size in rows[:most]]
            lines += [[plan.name, kind, str(count), f"{size / 2**20:.1f}", module] for count, size, module in parts]
    return logs.columns(lines) if len(lines) > 1 else "none"


def scaling(plans: Sequence[Plan], target: Target, counts: Sequence[int]) -> str:
    """The efficiency for each number of chips, with the collectives after the other work or overlapping with it."""
    lines = [["step", "chips", "step ms", "collectives ms", "efficiency after", "overlapping"]]
    for plan in plans:
        for count in counts:
            waiting = plan.communication(target.link(count), count)
            after, under = plan.seconds / (plan.seconds + waiting), plan.seconds / max(plan.seconds, waiting)
            times = [f"{seconds * 1e3:.2f}" for seconds in (plan.seconds, waiting)]
            lines.append([plan.name, str(count), *times, f"{after:.0%}", f"{under:.0%}"])
    return logs.columns(lines)
