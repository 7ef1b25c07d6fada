"""Batches of crops on the host, through grain: random access, deterministic, restartable at any step.

Training reads random crops endlessly; evaluation reads every pixel of a split exactly once. Both return dicts of NumPy
arrays: sar [B, H, W, C] float32, eo [B, H, W, C'] as stored, label [B, H, W] uint8, sar_valid and eo_valid [B, H, W]
bool, index [B] int32 (the tile's position in its split; -1 for padding), and for training key [B] int32, a random
seed per sample for augmentation. All arithmetic happens on the device.
"""

import dataclasses
import signal
import sys
from collections.abc import Iterator
from typing import NamedTuple

import grain.python as grain
import numpy as np

from hfd_jax.core import startup
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.seeds import word
from hfd_jax.data.catalogue import Dataset

MAX_WINDOW = 1024


class Ref(NamedTuple):
    """A tile to read; `labelled` False hides its label."""

    split: str
    index: int
    labelled: bool


class Pool(NamedTuple):
    """Tiles that every batch draws from, and how many of them it takes."""

    refs: list[Ref]
    per_batch: int


class Window(NamedTuple):
    """A part of a tile: its first row and column."""

    split: str
    index: int
    row: int
    col: int


@dataclasses.dataclass(frozen=True)
class Reading:
    """How tiles are read.

    Attributes:
      sar_index, eo_index: stored bands to take, in order.
      threads: reading threads of this process.
      workers: further reading processes; 0 reads in this one.
    """

    sar_index: tuple[int, ...]
    eo_index: tuple[int, ...]
    threads: int = 4
    workers: int = 0


def training_pools(dataset: Dataset, label_share: float, seed: int) -> tuple[list[Ref], list[Ref]]:
    """Divides the training tiles into (labelled, unlabelled).

    A share below 1 keeps that fraction of the labels, chosen by the seed, and treats the other tiles as unlabelled. At
    least one label is kept.
    """
    count = dataset.size("train")
    order = np.random.default_rng([seed, 0x1ABE1]).permutation(count)
    kept = max(1, round(label_share * count))
    labelled = [Ref("train", int(i), True) for i in sorted(order[:kept])]
    unlabelled = [Ref("train", int(i), False) for i in sorted(order[kept:])]
    unlabelled += [Ref("unlabelled", i, False) for i in range(dataset.sizes.get("unlabelled", 0))]
    return labelled, unlabelled


class _Reader:
    """Reads one window of a tile as a dict of arrays, padded with invalid pixels where the tile ends."""

    def __init__(self, dataset: Dataset, splits: set[str], reading: Reading):
        self._sources = {split: dataset.source(split) for split in sorted(splits)}
        self._bands = {"sar": list(reading.sar_index), "eo": list(reading.eo_index)}

    def tile(self, split: str, index: int) -> dict[str, np.ndarray]:
        return self._sources[split][index]

    def cut(
        self, tile, row: int, col: int, height: int, width: int, labelled: bool, index: int
    ) -> dict[str, np.ndarray]:
        part = {
            name: tile[name][row : row + height, col : col + width]
            for name in (*self._bands, "label", "sar_valid", "eo_valid")
        }
        for name, bands in self._bands.items():
            part[name] = part[name][..., bands]
        if not labelled:
            part["label"] = np.full_like(part["label"], IGNORE_LABEL)
        h, w = part["label"].shape
        if (h, w) != (height, width):
            for name, array in part.items():
                fill = IGNORE_LABEL if name == "label" else 0
                part[name] = np.pad(
                    array, ((0, height - h), (0, width - w)) + ((0, 0),) * (array.ndim - 2), constant_values=fill
                )
        return part | {"index": np.int32(index)}


class _RandomCrop(grain.RandomMapTransform):
    def __init__(self, reader: _Reader, size: int):
        self._reader, self._size = reader, size

    def random_map(self, ref: Ref, rng: np.random.Generator) -> dict[str, np.ndarray]:
        ref = Ref(*ref)
        tile = self._reader.tile(ref.split, ref.index)
        height, width = tile["label"].shape
        row = int(rng.integers(max(height - self._size, 0) + 1))
        col = int(rng.integers(max(width - self._size, 0) + 1))
        crop = self._reader.cut(tile, row, col, self._size, self._size, ref.labelled, ref.index)
        return crop | {"key": rng.integers(2**31, dtype=np.int32)}


class _ReadWindow(grain.MapTransform):
    def __init__(self, reader: _Reader, shape: tuple[int, int]):
        self._reader, self._shape = reader, shape

    def map(self, window: Window | None) -> dict[str, np.ndarray]:
        window = Window(*window)
        padding = window.index < 0  # any tile will do, since all its pixels are marked invalid
        tile = self._reader.tile(window.split, max(window.index, 0))
        part = self._reader.cut(tile, window.row, window.col, *self._shape, not padding, window.index)
        if padding:
            part |= {name: np.zeros_like(part[name]) for name in ("sar_valid", "eo_valid")}
        return part


def training_batches(
    dataset: Dataset,
    pools: list[Pool],
    reading: Reading,
    *,
    crop: int,
    seed: int,
    start_step: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of random crops; step s has the same batch whenever and on however many processes it is read.

    A pool yields the same crops in the same order whichever pools stand beside it, so that a student with unlabelled
    pairs sees the labelled crops of the student without.

    Args:
      dataset: to read from.
      pools: a batch holds the crops of the first pool, then those of the second, ... Each pool is reshuffled every
        epoch.
      reading: bands, threads, workers.
      crop: side length of a crop, pixels.
      seed: of order and crops.
      start_step: first step to return.
      process: (index of this process, number of processes).

    Yields:
      Batches of (sum of per_batch) / processes samples, step after step.
    """
    # The crop is drawn before the processes part, so that the crops do not depend on the number of hosts.
    reader = _Reader(dataset, {ref.split for pool in pools for ref in pool.refs}, reading)
    crops = [
        order.seed(word(seed + number)).random_map(_RandomCrop(reader, crop))
        for number, order in enumerate(_orders(pools, seed))
    ]
    joined = (
        crops[0] if len(crops) == 1 else grain.MapDataset.source(_Joined(crops, [pool.per_batch for pool in pools]))
    )
    batch_size = sum(pool.per_batch for pool in pools)
    return iter(_iterate(_batches(joined, batch_size, process)[start_step:], reading))


def batch_refs(pools: list[Pool], *, seed: int, step: int) -> list[Ref]:
    """The tiles that `training_batches` reads for one step (the first is step 0), without reading them."""
    return [
        Ref(*order[step * pool.per_batch + place])
        for pool, order in zip(pools, _orders(pools, seed), strict=True)
        for place in range(pool.per_batch)
    ]


def _orders(pools: list[Pool], seed: int) -> list[grain.MapDataset]:
    """Endless sequences of tiles, one per pool, reshuffled every epoch."""
    return [
        grain.MapDataset.source(pool.refs).seed(word(seed + number)).shuffle().repeat(None)
        for number, pool in enumerate(pools)
    ]


class _Joined:
    """Samples of several pools as one sequence, batch after batch."""

    def __init__(self, samples: list[grain.MapDataset], counts: list[int]):
        self._samples, self._counts = samples, counts

    def __len__(self) -> int:
        batches = min(len(samples) // count for samples, count in zip(self._samples, self._counts, strict=True))
        return min(batches, sys.maxsize // sum(self._counts)) * sum(
            self._counts
        )  # endless pools have sys.maxsize tiles

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        batch, place = divmod(position, sum(self._counts))
        for samples, count in zip(self._samples, self._counts, strict=True):
            if place < count:
                return samples[batch * count + place]
            place -= count
        raise IndexError(position)


def evaluation_windows(
    dataset: Dataset, split: str, window: int = 0, stride: int = 32
) -> tuple[list[Window], tuple[int, int]]:
    """Cuts a split into windows that cover every pixel once.

    Args:
      dataset: to cut.
      split: of the data set.
      window: side length, pixels; 0 takes whole tiles up to MAX_WINDOW.
      stride: the window's edges are multiples of it.

    Returns:
      (windows, (height, width) of every window).
    """
    shapes = [dataset.shape(split, i) for i in range(dataset.size(split))]
    limit = window or MAX_WINDOW
    size = tuple(min(limit, -(-max(shape[axis] for shape in shapes) // stride) * stride) for axis in (0, 1))
    windows = [
        Window(split, index, row, col)
        for index, (height, width) in enumerate(shapes)
        for row in range(0, height, size[0])
        for col in range(0, width, size[1])
    ]
    return windows, size


def evaluation_batches(
    dataset: Dataset,
    windows: list[Window],
    shape: tuple[int, int],
    reading: Reading,
    *,
    batch_size: int,
    process: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, np.ndarray]]:
    """Reads `windows` in order; the last batch is padded with windows without valid pixels."""
    if not windows:
        return iter(())
    padding = [Window(windows[0].split, -1, 0, 0)] * (-len(windows) % batch_size)
    reader = _Reader(dataset, {windows[0].split}, reading)
    crops = grain.MapDataset.source(windows + padding).map(_ReadWindow(reader, shape))
    return iter(_iterate(_batches(crops, batch_size, process), reading))


class _Part:
    """One process's samples: a run within every batch, so that all processes' parts in a row are the whole batch."""

    def __init__(self, samples: grain.MapDataset, batch_size: int, process: tuple[int, int]):
        self._samples, self._batch_size = samples, batch_size
        self._index, self._size = process[0], batch_size // process[1]

    def __len__(self) -> int:
        return len(self._samples) // self._batch_size * self._size

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        batch, place = divmod(position, self._size)
        return self._samples[batch * self._batch_size + self._index * self._size + place]


def _batches(samples: grain.MapDataset, batch_size: int, process: tuple[int, int]) -> grain.MapDataset:
    if process[1] > 1:
        samples = grain.MapDataset.source(_Part(samples, batch_size, process))
    return samples.batch(batch_size // process[1], drop_remainder=True)


def _ignore_signals(index: int, count: int) -> None:
    """Terminals and schedulers signal every process; the main one decides, and still needs the next batch."""
    for number in startup.STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _iterate(batches: grain.MapDataset, reading: Reading):
    iterator = batches.to_iter_dataset(
        grain.ReadOptions(num_threads=reading.threads, prefetch_buffer_size=2 * max(reading.threads, 1))
    )
    if reading.workers:
        iterator = iterator.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=reading.workers, per_worker_buffer_size=2),
            worker_init_fn=_ignore_signals,
        )
    return iterator
