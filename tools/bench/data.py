"""Benchmarks of data preparation and reading: `tools.benchmark --what=prepare` and `--what=data`."""

import argparse
import contextlib
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from tensorflow_datasets.core import example_serializer, writer

from hfd_jax.data.builder import prepare
from hfd_jax.data.facts import Facts
from hfd_jax.data.shards import FORMAT, example_of, features_of
from hfd_jax.data.tiles import Tile, TileSource, check_tile
from hfd_jax.train.networks import teacher_spec
from tools import datasets

ROUNDS = 3


def time_reading(workdir: str) -> str:
    """Measures crops per second of the reader, of the training step, and of both together."""
    # Imported here, because the worker processes of the preparation import this file and need none of it.
    from configs import default
    from hfd_jax.train import config_flags, run

    config = config_flags.config(default.get_config()).copy_and_resolve_references()
    config.baselines, config.stage = (), "teacher"
    config.data.workers = max(config.data.workers, 1)
    with run.prepared(config, workdir) as shared:
        return compare_rates(shared)


def compare_rates(shared: Any) -> str:
    """Times reading, training on one batch, and training on the batches read, in turn."""
    import jax

    from hfd_jax.core.parallel import prefetch
    from hfd_jax.data.pipeline import training_batches
    from hfd_jax.train import reading, steps
    from hfd_jax.train.state import initial_key
    from hfd_jax.train.training import initialiser, make_training

    config = shared.config
    network = teacher_spec()
    training = make_training(shared, network)
    state = shared.parallel.init(initialiser(shared, training), initial_key(config.seed, network.sensor))
    step = shared.parallel.train_step(steps.train_step(training.setup))
    batches = training_batches(
        shared.dataset,
        training.pools,
        reading.make_reading(config, shared.dataset.facts),
        crop=config.data.crop,
        seed=config.seed,
    )
    no_teacher, size = shared.parallel.replicate({}), config.data.batch_size
    held, same = [state], shared.parallel.shard(next(batches))

    def train_on(batch):
        held[0], _ = step(held[0], no_teacher, batch)
        jax.block_until_ready(held[0])

    train_on(same)  # compiles
    with contextlib.closing(prefetch(batches, shared.parallel.shard)) as arriving:
        train_on(next(arriving))
        waits: list[float] = []

        def train_on_next():
            start = time.perf_counter()
            batch = next(arriving)
            waits.append(time.perf_counter() - start)
            train_on(batch)

        turns = {"read": lambda: next(batches), "train": lambda: train_on(same), "both": train_on_next}
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(ROUNDS):
            for _ in range(4):  # discards batches read ahead during the last step, which would overstate the reader
                next(batches)
            for name, turn in turns.items():
                rates[name].append(size * per_second(turn))
    read, trained, both = (statistics.median(rates[name]) for name in turns)
    # Each step waits for its result, so the remaining time is spent waiting for data.
    idle = statistics.mean(waits) * both / size
    edge = f"{config.data.crop} x {config.data.crop}"
    return (
        f"reading {edge}, {config.data.workers} worker processes: {read:.1f} crops/s\n"
        f"training step on one batch, ResNet-{config.model.depth} width {config.model.width}, {config.dtype}, "
        f"{jax.default_backend()}: {trained:.2f} crops/s\n"
        f"training on the batches read: {both:.2f} crops/s\n"
        f"reading / training: {read / trained:.1f}; share of time waiting for data: {idle:.1%}"
    )


def per_second(call: Callable[[], object], seconds: float = 5.0, min_calls: int = 3) -> float:
    """Returns calls per second, measured over at least `seconds` and at least `min_calls` calls."""
    start, count = time.perf_counter(), 0
    while count < min_calls or time.perf_counter() - start < seconds:
        call()
        count += 1
    return count / (time.perf_counter() - start)


@dataclasses.dataclass(frozen=True)
class _Part:
    """The first `limit` tiles of each split of a source."""

    whole: TileSource
    limit: int

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def facts(self) -> Facts:
        return self.whole.facts

    @property
    def settings(self) -> dict[str, Any]:
        return {"limit": self.limit}

    @property
    def left_out(self) -> dict[str, int]:
        return self.whole.left_out

    @property
    def notes(self) -> list[str]:
        return self.whole.notes

    def keys(self) -> dict[str, Sequence[Any]]:
        return {split: keys[: self.limit] for split, keys in self.whole.keys().items()}

    def read(self, key: Any) -> Tile:
        return self.whole.read(key)


def time_preparation(arguments: argparse.Namespace) -> str:
    """Measures tiles per second of the plain loop and of each number of processes."""
    builder, whole = datasets.make_source(arguments.dataset, arguments.raw_dir, arguments)
    source = _Part(whole, arguments.limit)
    tiles = sum(len(keys) for keys in source.keys().values())
    rates: dict[int, list[float]] = {workers: [] for workers in range(arguments.workers + 1)}
    for number in range(ROUNDS + 1):
        for workers, found in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                if workers:
                    prepare(builder, source, folder, workers=workers)
                else:
                    plain_loop(source, os.path.join(folder, "plain"))
                if number:  # skips the first round, which fills the file cache
                    found.append(tiles / (time.perf_counter() - start))
    plain = statistics.median(rates[0])
    names = ["plain loop", *(f"{workers} process(es)" for workers in list(rates)[1:])]
    medians = [statistics.median(found) for found in rates.values()]
    return "\n".join(
        f"{name}: {rate:.1f} tiles/s ({rate / plain:.2f} x)" for name, rate in zip(names, medians, strict=True)
    )


def plain_loop(source: TileSource, path: str) -> None:
    """Writes the tiles in a simple loop, without parallel processes or safeguards, for comparison."""
    features = features_of(source.facts)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

    def examples():
        for number, key in enumerate(key for keys in source.keys().values() for key in keys):
            tile = source.read(key)
            check_tile(tile, source.facts)
            yield number, serializer.serialize_example(features.encode_example(example_of(tile)))

    writer.ExampleWriter(FORMAT).write(path=path, examples=examples())
