"""Whether the device computes what the CPU computes: one update of teacher, SAR-only student and HFD student.

The reference is computed in the same run by a process that has only the CPU. A stored file would become outdated with
every change of a network or loss; the CPU's numbers are those that the tests verify, with the code of this version.

Compared are the losses, the gradient (from the optimiser's first moment) and the batch statistics, each as a relative
error: |found - expected| / |expected| over all entries of a kind.
"""

import concurrent.futures
import itertools
import os
from typing import Any

import jax
import numpy as np

from hfd_jax.core.parallel import Jit
from hfd_jax.train import steps
from tools.bench import cases
from tools.bench.suite.settings import CLASSES, EO_BANDS, SAR_BANDS, Job, Settings, fixed_arguments, make_config

FILE = "numbers.npz"
DTYPES = ("float32", "bfloat16")
# float32 with full-precision products: the SAR-only step compiled for the CPU at two levels of optimisation differs by
# 5e-6 (gradient), since sums are taken in another order. A hundred times as much leaves room for other convolution
# algorithms; it is one rounding to TF32, so that products in TF32 or bfloat16 do not pass.
FLOAT32 = 5e-4
# bfloat16: both devices round every activation to 8 bits, at places that their compilers choose. What is allowed is
# what rounding costs on the CPU, with a factor for a device that stores more activations in 16 bits than the CPU.
BFLOAT16_FACTOR = 4.0
SMALLEST = 2.0**-8  # one rounding to bfloat16; the least that is allowed in bfloat16


def reference(job: Job) -> dict[str, Any]:
    """Computes the three steps on the CPU in float32 and bfloat16; writes FILE."""
    stored = {}
    wanted = list(itertools.product(job.settings.numbers_steps, DTYPES))
    job.say(f"{len(wanted)} updates on the CPU")
    # Compiling takes nearly all of the time, and one program keeps few cores busy.
    with concurrent.futures.ThreadPoolExecutor() as threads:
        updates = threads.map(lambda case: one_update(job.settings, *case), wanted)
        for (what, dtype), found in zip(wanted, updates, strict=True):
            stored |= {f"{what}/{dtype}/{kind}": values for kind, values in found.items()}
    np.savez(os.path.join(job.folder, FILE), **stored)
    return {"file": FILE, "bytes": sum(array.nbytes for array in stored.values())}


def compare(job: Job) -> dict[str, Any]:
    """Computes the steps on the device from the same weights; lists errors and tolerances."""
    rows, errors = [], {}
    with np.load(os.path.join(job.folder, FILE)) as stored:
        for what in job.settings.numbers_steps:
            for dtype in DTYPES:
                job.say(f"{what} in {dtype}")
                try:
                    found = one_update(job.settings, what, dtype)
                    rows += [compared(stored, what, dtype, kind, values) for kind, values in found.items()]
                except Exception as error:  # noqa: BLE001 - the other steps are compared all the same
                    errors[f"{what} {dtype}"] = f"{type(error).__name__}: {error}"
                job.keep({"rows": rows, "errors": errors})
    errors |= {
        f"{row['step']} {row['dtype']}": f"{row['of']} differs by {row['error']:.1e}; at most {row['allowed']:.1e}"
        for row in rows
        if not row["error"] <= row["allowed"]
    }
    return {"rows": rows, "errors": errors}


def compared(stored: Any, what: str, dtype: str, kind: str, values: np.ndarray) -> dict[str, Any]:
    """One row: the error of a kind of numbers against the CPU in float32, and what is allowed."""
    expected = stored[f"{what}/float32/{kind}"]
    allowed = FLOAT32
    if dtype == "bfloat16":
        of_cpu = relative_error(stored[f"{what}/bfloat16/{kind}"], expected)
        allowed = max(BFLOAT16_FACTOR * of_cpu, SMALLEST)
    return {
        "step": what,
        "dtype": dtype,
        "of": kind,
        "error": relative_error(values, expected),
        "allowed": allowed,
        "norm": float(np.linalg.norm(values)),
    }


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """|found - expected| / |expected|; NaN if `found` is not finite."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def one_update(settings: Settings, what: str, dtype: str) -> dict[str, np.ndarray]:
    """Runs one training step of one of cases.NETWORKS; returns kind -> float64 [N]."""
    size, batch = settings.numbers_size, settings.numbers_batch
    config = make_config(settings, settings.numbers_depth, settings.numbers_width, size, dtype)
    shapes = cases.Shapes(batch, size, SAR_BANDS, EO_BANDS, CLASSES)
    setup, parallel = cases.make_setup(config, shapes, cases.NETWORKS[what](config)), Jit(jax.local_devices()[:1])
    state, teacher = parallel.replicate(fixed_arguments(setup, shapes))
    # Devices may compute float32 products with fewer bits by default.
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        step = parallel.train_step(steps.train_step(setup))
        state, metrics = jax.device_get(step(state, teacher, parallel.shard(cases.make_batch(shapes))))
    moments = [x for path, x in jax.tree.leaves_with_path(state.opt_state) if ".mu" in jax.tree_util.keystr(path)]
    names = [name for name in metrics if name in ("loss", "grad_norm") or f"share_{name}" in metrics]
    found = {
        "losses": [metrics[name] for name in sorted(names)],
        "gradient": moments,
        "batch statistics": jax.tree.leaves(state.batch_stats),
    }
    return {kind: np.concatenate([np.ravel(x).astype(np.float64) for x in v]) for kind, v in found.items()}
