"""Shards: consecutive tiles that a process writes atomically as one array_record file."""

import concurrent.futures
import dataclasses
import hashlib
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, writer
from tqdm import tqdm

from hfd_jax.core import startup
from hfd_jax.core.errors import DataError, WorkerDiedError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data import ground
from hfd_jax.data.cautions import pixel_edge
from hfd_jax.data.facts import Facts, StatisticsAccumulator
from hfd_jax.data.tiles import Tile, TileSource, check_tile

FORMAT = tfds.core.FileFormat.ARRAY_RECORD


@dataclasses.dataclass(frozen=True)
class Shard:
    """Consecutive tiles that go into one file; calling it yields them and, at the end, writes its report.

    Attributes:
      source: the source of the tiles.
      split, index: the split, and the shard's number in it.
      first: position of the first tile in the split.
      keys: for `source.read`.
      report: file to write.
      skip_bad: see `SourceConfig`.
    """

    source: TileSource
    split: str
    index: int
    first: int
    keys: Sequence[Any]
    report: str
    skip_bad: bool = False

    @property
    def staged(self) -> str:
        """Path of the shard in the staging folder, beside its report."""
        return self.report.removesuffix(".report.npz") + ".array_record"

    def __call__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        statistics, shapes, skipped = StatisticsAccumulator(self.source.facts), [], []
        places, systems, edges = [], [], []
        for position, key in enumerate(self.keys, self.first):
            try:
                tile = self.source.read(key)
                check_tile(tile, self.source.facts)
            except DataError as error:
                if not self.skip_bad:
                    raise
                skipped.append(str(error))
                continue
            example = example_of(tile)
            statistics.add(tile.sar, tile.eo, example["label"], tile.sar_valid, tile.eo_valid)
            shapes.append(example["label"].shape)
            places.append(ground.corners(tile))
            systems.append(tile.crs)
            edges.append(pixel_edge(tile))
            yield position, example
        temporary = f"{self.report}.{os.getpid()}.tmp.npz"
        arrays = {
            "shapes": np.array(shapes, np.int32).reshape(-1, 2),
            "skipped": np.array(skipped, str),
            "corners": np.array(places).reshape(-1, 4, 2),
            "crs": np.array(systems, str),
            "edges": np.array(edges, float),
        }
        np.savez(temporary, **arrays, **statistics.to_arrays())
        os.replace(temporary, self.report)


def features_of(facts: Facts) -> tfds.features.FeaturesDict:
    """The stored form of a tile; planes are raw bytes, which read several times faster than the default encoding."""

    def plane(dtype, *bands):
        return tfds.features.Tensor(shape=(None, None, *bands), dtype=dtype, encoding=tfds.features.Encoding.BYTES)

    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "sar": plane(np.float32, len(facts.sar_bands)),
            "eo": plane(np.dtype(facts.eo_dtype).type, len(facts.eo_bands)),
            "label": plane(np.uint8),
            "sar_valid": plane(np.bool_),
            "eo_valid": plane(np.bool_),
            "crs": tfds.features.Text(),
            "transform": tfds.features.Tensor(shape=(6,), dtype=np.float64),
            "rotated": tfds.features.Scalar(dtype=np.bool_),
        }
    )


def write_shards(shards: list[Shard], workers: int) -> None:
    """Writes the missing shards on `workers` processes; shows progress and remaining time.

    Raises:
      DataError: a tile is bad. Finished shards are kept.
      WorkerDiedError: the system killed a process.
    """
    todo = [shard for shard in shards if not os.path.exists(shard.staged)]
    total = sum(len(shard.keys) for shard in shards)
    done = total - sum(len(shard.keys) for shard in todo)
    with tqdm(total=total, initial=done, desc="preparing", unit="tile", mininterval=1.0) as progress:
        if workers <= 1:
            for shard in todo:
                _write_shard(shard, progress)
            return
        context = multiprocessing.get_context("spawn")  # forking a process that has run JAX or TensorStore can hang
        ticks = context.SimpleQueue()
        reader = threading.Thread(target=_forward, args=(ticks, progress), daemon=True)
        reader.start()
        source = todo[0].source if todo else None
        with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (ticks, source)) as pool:
            # The source may hold a long list of files, so it is sent once to each process and not with each shard.
            futures = [pool.submit(_write_in_worker, dataclasses.replace(shard, source=None)) for shard in todo]
            try:
                for future in concurrent.futures.as_completed(futures):
                    future.result()
            except BrokenProcessPool as error:
                raise WorkerDiedError("finished shards are kept, the same command continues") from error
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        ticks.put(None)
        reader.join()


def report_path(folder: str, split: str, index: int, keys: Sequence[Any]) -> str:
    """Path of a shard's report; it depends on the shard's keys."""
    digest = hashlib.sha1(repr(list(keys)).encode()).hexdigest()[:12]
    return os.path.join(folder, f"{split}-{index:05d}-{digest}.report.npz")


def read_report(path: str) -> dict[str, np.ndarray]:
    """shapes, skipped messages, corners, crs, edges of pixels, and what `StatisticsAccumulator.merge` takes."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _write_shard(shard: Shard, progress) -> None:
    features = features_of(shard.source.facts)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

    def serialised():
        for key, example in shard():
            yield key, serializer.serialize_example(features.encode_example(example))
            progress.update(1)

    temporary = f"{shard.staged}.{os.getpid()}.tmp"
    writer.ExampleWriter(FORMAT).write(path=temporary, examples=serialised())
    os.replace(temporary, shard.staged)


class _Worker:
    """State of a worker process; also replaces the progress bar there."""

    queue: Any = None
    source: Any = None

    def update(self, count: int) -> None:
        self.queue.put(count)


def _start_worker(queue, source: TileSource) -> None:
    startup.ignore_in_worker()
    _Worker.queue, _Worker.source = queue, source


def _write_in_worker(shard: Shard) -> None:
    _write_shard(dataclasses.replace(shard, source=_Worker.source), _Worker())


def _forward(queue, progress) -> None:
    while (count := queue.get()) is not None:
        progress.update(count)


def example_of(tile: Tile) -> dict[str, Any]:
    """The tile as `features_of` stores it."""
    label = np.full(tile.sar.shape[:2], IGNORE_LABEL, np.uint8) if tile.label is None else tile.label
    fields = {field.name: getattr(tile, field.name) for field in dataclasses.fields(tile)}
    return {**fields, "label": label, "transform": np.asarray(tile.transform, np.float64)}
