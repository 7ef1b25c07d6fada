"""Times the steps and inference on one device, in JAX and in PyTorch, and sets them beside the device's peaks."""

import concurrent.futures
import dataclasses
import importlib.util
import os
from typing import Any

import jax
import numpy as np

from hfd_jax.core.parallel import Jit
from hfd_jax.evaluation.steps import predict_step
from hfd_jax.train import steps
from hfd_jax.train.networks import baseline_spec
from tools.bench import cases, machine
from tools.bench.suite.settings import Job, Settings, fixed_arguments, timed
from tools.bench.timing import Timing, interleaved

STEPS = ("student_step", "sar_step", "teacher_step", "inference")  # the step with the largest memory first
USABLE = 0.85  # share of the device's memory that the plan of a step may take; the rest is for the other steps' states
ROUNDS = 3


def device(job: Job) -> dict[str, Any]:
    """Names the device and measures its peaks."""
    job.say("measuring a matrix product and a copy")
    found = machine.describe(1) | {"memory": memory_limit()}
    return found | {
        "peaks": {dtype: machine.peaks(dtype, 2.0) for dtype in dict.fromkeys((job.settings.dtype, "float32"))}
    }


def memory_limit() -> int | None:
    """Bytes that this process may use on the first device; None if the backend does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


@dataclasses.dataclass
class Program:
    """A compiled step with its arguments. `held` is the state that the step donates and replaces; None for inference.

    Attributes:
      compiled, held, others: the program, the donated argument and the further ones.
      flops: operations of the program as traced, before the compiler rewrites it.
      bytes_accessed: the compiler's estimate; None if it gives none.
      planned: bytes that the compiler plans: arguments, results and temporaries.
    """

    compiled: Any
    held: Any
    others: tuple
    flops: float
    bytes_accessed: float | None
    planned: int

    def __call__(self) -> None:
        if self.held is None:
            jax.device_get(self.compiled(*self.others))  # a class map is of use on the host only
        else:
            self.held, metrics = self.compiled(self.held, *self.others)
            jax.block_until_ready((self.held, metrics))


def build(settings: Settings, batch: int, names: tuple[str, ...], arrays: dict) -> dict[str, Program]:
    """Compiles several steps side by side."""
    config, shapes = timed(settings, batch)
    parallel = Jit(jax.local_devices()[:1])
    placed, lowered = parallel.shard(arrays), {}
    for name in names:
        if name == "inference":
            setup = cases.make_setup(config, shapes, baseline_spec("sar_only"))
            state, _ = parallel.replicate(fixed_arguments(setup, shapes))
            arguments = (None, state.model_variables, placed)
            step = parallel.eval_step(predict_step(setup.model, setup.inputs, "sar"))
            lowered[name] = step.lower(*arguments[1:]), arguments
        else:
            setup = cases.make_setup(config, shapes, cases.NETWORKS[name](config))
            arguments = (*parallel.replicate(fixed_arguments(setup, shapes)), placed)
            lowered[name] = parallel.train_step(steps.train_step(setup)).lower(*arguments), arguments
    with concurrent.futures.ThreadPoolExecutor() as threads:
        compiled = dict(zip(lowered, threads.map(lambda item: item[0].compile(), lowered.values()), strict=True))
    return {
        name: Program(
            compiled[name],
            arguments[0],
            arguments[1:],
            (traced.cost_analysis() or {}).get("flops", 0.0),
            (compiled[name].cost_analysis() or {}).get("bytes accessed"),
            cases.costs(compiled[name], 1)[2],
        )
        for name, (traced, arguments) in lowered.items()
    }


def measure(job: Job) -> dict[str, Any]:
    """Times all steps with the largest batch that fits, and traces the student's step."""
    settings, say = job.settings, job.say
    batch = settings.batch
    say(f"compiling the student's step for batch {batch}")
    programs = build(settings, batch, ("student_step",), arrays_of(settings, batch))
    largest = largest_batch(programs["student_step"], batch, memory_limit())
    while True:
        try:
            if largest != batch:
                batch, programs = largest, {}
            missing = tuple(name for name in STEPS if name not in programs)
            say(f"compiling {', '.join(missing)} for batch {batch}")
            programs |= build(settings, batch, missing, arrays_of(settings, batch))
            peak = warm_up(programs)
            break
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or batch == 1:
                raise
            largest = batch // 2
            say(f"batch {batch} does not fit")
    say(f"timing for {len(STEPS) * settings.seconds:.0f} s")
    timings = interleaved(programs, settings.seconds, ROUNDS)
    found = {
        "batch": batch,
        "size": settings.size,
        "rows": [row(name, batch, timings[name], programs[name], job.results) for name in programs],
        "student_peak_memory": peak,
        "errors": {},
    }
    job.keep(found)
    say("tracing three steps of the student")
    try:
        with jax.profiler.trace(os.path.join(job.folder, "trace")):
            for _ in range(3):
                programs["student_step"]()
        found["trace"] = "trace"
    except Exception as error:  # noqa: BLE001 - the timings are kept
        found["errors"]["trace"] = f"{type(error).__name__}: {error}"
    return found


def arrays_of(settings: Settings, batch: int) -> dict[str, np.ndarray]:
    """A random batch, made of few different pairs: drawing 128 large ones takes longer than compiling."""
    pairs = cases.make_batch(timed(settings, min(batch, 8))[1])
    return {name: np.resize(array, (batch, *array.shape[1:])) for name, array in pairs.items()}


def largest_batch(program: Program, batch: int, limit: int | None) -> int:
    """The largest power-of-two multiple (or fraction) of `batch` whose plan fits; `batch` without a limit."""
    if limit is None:
        return batch
    fixed = sum(x.nbytes for x in jax.tree.leaves((program.held, program.others[0])))
    per_pair = max((program.planned - fixed) / batch, 1.0)
    while fixed + per_pair * 2 * batch <= USABLE * limit:
        batch *= 2
    while batch > 1 and fixed + per_pair * batch > USABLE * limit:
        batch //= 2
    return batch


def warm_up(programs: dict[str, Program]) -> int | None:
    """Runs every step once, the student's first; returns the peak of the memory in use after that, in bytes."""
    peak = None
    for name in STEPS:
        programs[name]()
        if name == "student_step":
            peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return peak


def row(name: str, batch: int, timing: Timing, program: Program, results: dict) -> dict[str, Any]:
    """The numbers of one step as JSON."""
    flops = program.flops / timing.median
    of_peak = {}
    peaks = next(iter(results.get("device", {}).get("peaks", {}).values()), None)
    if peaks:
        of_peak["share_of_matmul"] = flops / peaks["flops"]
        if program.bytes_accessed:
            of_peak["share_of_bandwidth"] = program.bytes_accessed / timing.median / peaks["bandwidth"]
    return {
        "step": name,
        "seconds": timing.median,
        "quartiles": timing.spread,
        "pairs_per_second": batch / timing.median,
        "flops": program.flops,
        "bytes_accessed": program.bytes_accessed,
        "planned_memory": program.planned,
        **of_peak,
    }


def peer(job: Job) -> dict[str, Any]:
    """Times the same steps in PyTorch, eagerly and compiled, in bfloat16 and channels_last.

    JAX, which supplies the weights, has only the CPU in this process, so that PyTorch has the device to itself.
    """
    if importlib.util.find_spec("torch") is None:
        return {"skipped": "PyTorch is not installed"}
    import torch

    from tools.bench.peer import Flavour, Peer

    settings, say = job.settings, job.say
    batch = job.results.get("speed", {}).get("batch", settings.batch)
    accelerated = torch.cuda.is_available()
    if not accelerated and job.results.get("device", {}).get("backend", "cpu") != "cpu":
        return {"skipped": "PyTorch does not see the device"}
    found: dict[str, Any] = {"torch": torch.__version__, "rows": [], "errors": {}}
    say(f"weights for batch {batch}")
    one = Peer(*timed(settings, batch))
    for compiled in (False, True):
        for name in ("student_step", "sar_step", "inference"):
            flavour = Flavour(compiled, bf16=True)
            say(f"{name} {flavour.name}")
            try:
                one, batch, timing = _timed_peer(one, settings, batch, name, flavour, torch)
                entry = {"step": name, "flavour": flavour.name, "batch": batch, "seconds": timing.median}
                found["rows"].append(entry | {"quartiles": timing.spread, "pairs_per_second": batch / timing.median})
            except Exception as error:  # noqa: BLE001 - the other flavours are timed all the same
                found["errors"][f"{name} {flavour.name}"] = f"{type(error).__name__}: {str(error)[:500]}"
            job.keep(found)
    return found


def _timed_peer(one: Any, settings: Settings, batch: int, name: str, flavour: Any, torch: Any):
    """Returns (peer, batch, timing); the batch is halved until the step fits."""
    from tools.bench.peer import Peer

    while True:
        try:
            call = one.inference_call(flavour) if name == "inference" else one.training_call(name, flavour)
            return one, batch, interleaved({name: call}, settings.seconds, ROUNDS)[name]
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        torch.cuda.empty_cache()
        batch //= 2
        one = Peer(*timed(settings, batch))
