"""How fast data is prepared and read: `tools.benchmark --what=prepare` and `--what=data`."""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from tensorflow_datasets.core import example_serializer, writer

from hfd_jax.data.builder import prepare
from hfd_jax.data.facts import Facts
from hfd_jax.data.shards import FORMAT, example_of, features_of
from hfd_jax.data.tiles import Tile, TileSource, check_tile
from tools import datasets

ROUNDS = 3


def reading(workdir: str) -> str:
    """Crops per second of the data path and of the training step."""
    # Imported here: the processes that prepare data import this file too, and need none of it.
    from configs import default
    from hfd_jax import config_flags, context

    config = config_flags.config(default.get_config()).copy_and_resolve_references()
    config.baselines, config.stage, config.data.workers = (), "teacher", 1
    with context.prepared(config, workdir) as shared:
        return race(shared)


def race(shared: Any) -> str:
    """Reads and trains in turn."""
    import jax

    from hfd_jax import assembly, steps, train
    from hfd_jax.data.pipeline import training_batches

    config = shared.config
    network = assembly.teacher_run()
    setup = train.make_setup(shared, network, None, config.teacher.steps)
    state = shared.parallel.init(train.initialiser(shared, network, setup, None), jax.random.key(config.seed))
    step = shared.parallel.train_step(steps.train_step(setup))
    batches = training_batches(
        shared.dataset,
        assembly.make_pools(config, shared.dataset, network),
        assembly.make_reading(config, shared.dataset.facts),
        crop=config.data.crop,
        batch_size=config.data.batch_size,
        seed=config.seed,
    )
    batch = shared.parallel.shard(next(batches))
    state, _ = step(state, shared.parallel.replicate({}), batch)  # compiles
    jax.block_until_ready(state)
    read, trained = [], []
    for _ in range(ROUNDS):
        for _ in range(4):  # what was read ahead while the step ran would flatter the reader
            next(batches)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < 5:
            next(batches)
            count += config.data.batch_size
        read.append(count / (time.perf_counter() - start))
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < 5:
            state, _ = step(state, shared.parallel.replicate({}), batch)
            jax.block_until_ready(state)
            count += config.data.batch_size
        trained.append(count / (time.perf_counter() - start))
    batches.close()  # ends the worker process
    one, other = statistics.median(read), statistics.median(trained)
    size = f"{config.data.crop} x {config.data.crop}"
    return (
        f"reading {size}, 1 worker process: {one:.0f} crops/s\n"
        f"training step, ResNet-{config.model.depth} width {config.model.width} on {jax.default_backend()}: "
        f"{other:.1f} crops/s\nratio: {one / other:.1f}"
    )


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

    def keys(self) -> dict[str, Sequence[Any]]:
        return {split: keys[: self.limit] for split, keys in self.whole.keys().items()}

    def read(self, key: Any) -> Tile:
        return self.whole.read(key)


def preparing(arguments: argparse.Namespace) -> str:
    """Tiles per second for the plain loop and for every number of processes."""
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
                if number:  # the first round fills the file cache for all of them
                    found.append(tiles / (time.perf_counter() - start))
    plain = statistics.median(rates[0])
    names = ["plain loop", *(f"{workers} process(es)" for workers in list(rates)[1:])]
    medians = [statistics.median(found) for found in rates.values()]
    return "\n".join(
        f"{name}: {rate:.1f} tiles/s ({rate / plain:.2f} x)" for name, rate in zip(names, medians, strict=True)
    )


def plain_loop(source: TileSource, path: str) -> None:
    """What a script without this project's care would do."""
    features = features_of(source.facts)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

    def examples():
        for number, key in enumerate(key for keys in source.keys().values() for key in keys):
            tile = source.read(key)
            check_tile(tile, source.facts)
            yield number, serializer.serialize_example(features.encode_example(example_of(tile)))

    writer.ExampleWriter(FORMAT).write(path=path, examples=examples())
