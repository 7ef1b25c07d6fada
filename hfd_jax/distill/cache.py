"""The frozen teacher's features of every training tile, computed once and stored; stage 2 reads them from then on.

Exact up to float16 where a crop is a whole tile: then all that augmentation does to an optical image is to mirror or
turn it, in one of a few ways, and there is one record per tile and way. Files hold a run of tiles each and appear under
their name when they are whole, so that an interrupted computation goes on with the next one.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from hfd_jax.data.catalogue import Dataset
from hfd_jax.data.pipeline import Reading, Ref, Window, evaluation_batches
from hfd_jax.distill.interface import TAUGHT
from hfd_jax.errors import ConfigError, WorkdirError, writing
from hfd_jax.parallel import wait_for_all
from hfd_jax.reporting import say

TILES_PER_FILE, MOST_FILES = 64, 256  # more tiles than both allow make larger files: readers keep every file open
STORED = np.float16


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which record holds what.

    Attributes:
      sizes: split -> number of tiles, in the order of the records.
      variants: ways in which a tile may be mirrored or turned.
      shapes: tap -> (h, w, C) of one tile.
    """

    sizes: dict[str, int]
    variants: int
    shapes: dict[str, tuple[int, ...]]

    @property
    def tiles(self) -> list[tuple[str, int]]:
        return [(split, index) for split, size in self.sizes.items() for index in range(size)]

    def record(self, ref: Ref, variant: int) -> int:
        splits = list(self.sizes)
        before = sum(self.sizes[split] for split in splits[: splits.index(ref.split)])
        return (before + ref.index) * self.variants + variant

    @property
    def tiles_per_file(self) -> int:
        return max(TILES_PER_FILE, -(-len(self.tiles) // MOST_FILES))

    def part(self, number: int) -> list[tuple[str, int]]:
        """The tiles of a file."""
        return self.tiles[number * self.tiles_per_file : (number + 1) * self.tiles_per_file]

    @property
    def record_bytes(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values()) * np.dtype(STORED).itemsize

    @property
    def bytes(self) -> int:
        """Of all records."""
        return self.record_bytes * self.variants * len(self.tiles)

    def encode(self, features: dict[str, np.ndarray]) -> bytes:
        return b"".join(np.ascontiguousarray(features[tap], STORED).tobytes() for tap in self.shapes)

    def decode(self, record: bytes) -> dict[str, np.ndarray]:
        numbers, found, start = np.frombuffer(record, STORED), {}, 0
        for tap, shape in self.shapes.items():
            size = int(np.prod(shape))
            found[tap], start = numbers[start : start + size].reshape(shape), start + size
        return found


class Features:
    """Reads what `prepare` has written."""

    def __init__(self, folder: str, layout: Layout):
        self._layout, self._source = layout, ArrayRecordDataSource(_paths(folder, layout))

    def __call__(self, refs: Sequence[Ref], variants: Sequence[int]) -> dict[str, np.ndarray]:
        """{"teacher_<tap>": [B, h, w, C] float16} of the given tiles, each in its variant."""
        positions = [self._layout.record(ref, int(variant)) for ref, variant in zip(refs, variants, strict=True)]
        samples = [self._layout.decode(record) for record in self._source.__getitems__(positions)]
        return {f"{TAUGHT}{tap}": np.stack([sample[tap] for sample in samples]) for tap in self._layout.shapes}


def joined(
    batches: Iterator[dict], refs: Iterator[Sequence[Ref]], features: Features, variants: Callable[[Any], Any]
) -> Iterator[dict]:
    """Batches with the teacher's features added.

    Args:
      batches: of `training_batches`, read without optical images.
      refs: the tiles of each batch.
      features: of these tiles.
      variants: key [B] -> variant of each sample [B], as the step will draw it.
    """
    try:
        for batch in batches:
            yield batch | features(next(refs), np.asarray(variants(batch["key"])))
    finally:
        if hasattr(batches, "close"):
            batches.close()


def prepare(
    folder: str,
    identity: dict[str, Any],
    dataset: Dataset,
    splits: Sequence[str],
    reading: Reading,
    crop: int,
    teach: Callable[[int, dict], dict[str, Any]],
    variants: int,
) -> Features:
    """Computes and stores what is not there yet; opens it.

    Args:
      folder: to write to; its content is replaced where it was made with another `identity`.
      identity: JSON-ready; everything that decides the features: teacher, data, input, crop.
      dataset, splits, reading: the tiles.
      crop: edge of a training crop, pixels; no tile may be larger.
      teach: (variant, batch without augmentation) -> {tap: [B, h, w, C]}, on one device of this process.
      variants: number of them.

    Raises:
      ConfigError: a tile is larger than a crop, or a feature does not fit into float16.
      WorkdirError: the disk is too small, or writing fails.
    """
    reading = dataclasses.replace(reading, workers=0)  # they would be started anew for every file
    sizes = {split: dataset.size(split) for split in splits}
    for split in splits:
        if max(dataset.largest(split)) > crop:
            height, width = dataset.largest(split)
            raise ConfigError(
                f"config.distill.cache is True: that needs crops that hold whole tiles; config.data.crop is {crop}, "
                f"the largest {split} tile has {height} x {width} pixels"
            )
    layout = Layout(sizes, variants, _shapes(dataset, splits[0], reading, crop, teach))
    if jax.process_index() == 0:
        shapes = {tap: list(shape) for tap, shape in layout.shapes.items()}
        more = {"sizes": sizes, "shapes": shapes, "tiles_per_file": layout.tiles_per_file}
        with writing(folder):
            _claim(folder, identity | more)
        _compute(folder, layout, dataset, reading, crop, teach)
    wait_for_all("teacher's features stored")
    return Features(folder, layout)


def _shapes(dataset: Dataset, split: str, reading: Reading, crop: int, teach) -> dict[str, tuple[int, ...]]:
    batch = next(iter(evaluation_batches(dataset, [Window(split, 0, 0, 0)], (crop, crop), reading, batch_size=1)))
    return {tap: found.shape[1:] for tap, found in jax.eval_shape(lambda b: teach(0, b), batch).items()}


def _claim(folder: str, identity: dict[str, Any]) -> None:
    path, wanted = os.path.join(folder, "identity.json"), json.dumps(identity, sort_keys=True)
    if os.path.exists(folder):
        found = None
        if os.path.exists(path):
            with open(path) as file:
                found = file.read()
        if found == wanted:
            return
        say(f"{folder}: of another teacher, other data or other settings; computed anew")
        shutil.rmtree(folder)
    os.makedirs(folder)
    with open(path, "w") as file:
        file.write(wanted)


def _compute(folder: str, layout: Layout, dataset: Dataset, reading: Reading, crop: int, teach) -> None:
    paths, tiles = _paths(folder, layout), layout.tiles
    for name in os.listdir(folder):
        if name.endswith(".tmp"):  # of a run that was killed
            os.remove(os.path.join(folder, name))
    todo = [
        number for number, path in enumerate(paths) if not _is_whole(path, len(layout.part(number)) * layout.variants)
    ]
    needed, free = layout.bytes * len(todo) // len(paths), shutil.disk_usage(folder).free
    if needed > free:
        raise WorkdirError(
            f"{folder}: the teacher's features need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; make room, or "
            "set config.distill.cache=False"
        )
    if todo:
        kilobytes, megabytes = layout.record_bytes * layout.variants / 1e3, layout.bytes / 1e6
        say(f"teacher's features: {len(tiles)} tiles, {kilobytes:.0f} kB each, {megabytes:.0f} MB in {folder}")
    done = len(tiles) - sum(len(layout.part(number)) for number in todo)
    with tqdm(total=len(tiles), initial=done, desc="teacher's features", unit="tile", delay=2) as progress:
        for number in todo:
            with _storing(paths[number]) as writer:
                part = layout.part(number)
                for tile, samples in zip(part, _of_tiles(part, layout, dataset, reading, crop, teach), strict=True):
                    for sample in samples:
                        _check(sample, tile)
                        writer(layout.encode(sample))
                    progress.update(1)


@contextlib.contextmanager
def _storing(path: str) -> Iterator[Callable[[bytes], None]]:
    """Yields what writes a record; the file appears under its name when all are on the disk."""
    temporary = f"{path}.{os.getpid()}.tmp"

    def attempt(call, *args):
        try:
            with writing(path):
                return call(*args)
        except RuntimeError as error:  # as array_record reports what the operating system says
            if isinstance(error, WorkdirError):
                raise
            raise WorkdirError(f"{path}: cannot be written ({error})") from error

    def finish():
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)

    writer = attempt(ArrayRecordWriter, temporary, "group_size:1")
    yield lambda record: attempt(writer.write, record)
    attempt(writer.close)
    attempt(finish)


def _is_whole(path: str, records: int) -> bool:
    if not os.path.exists(path):
        return False
    try:
        with ArrayRecordDataSource([path]) as source:
            return len(source) == records
    except (RuntimeError, ValueError):  # cut off, or empty
        return False


def _of_tiles(tiles, layout: Layout, dataset: Dataset, reading: Reading, crop: int, teach) -> Iterator[list[dict]]:
    """Features of each tile, in every variant."""
    for split in dict.fromkeys(split for split, _ in tiles):
        windows = [Window(split, index, 0, 0) for name, index in tiles if name == split]
        left = len(windows)
        for batch in evaluation_batches(dataset, windows, (crop, crop), reading, batch_size=min(8, TILES_PER_FILE)):
            found = [jax.device_get(teach(variant, batch)) for variant in range(layout.variants)]
            for place in range(min(left, len(batch["index"]))):
                yield [{tap: array[place] for tap, array in features.items()} for features in found]
            left -= len(batch["index"])


def _check(sample: dict[str, np.ndarray], tile: tuple[str, int]) -> None:
    largest = np.finfo(STORED).max
    for tap, array in sample.items():
        if not np.all(np.abs(array.astype(np.float32)) <= largest):
            raise ConfigError(
                f"config.distill.cache is True, but the teacher's {tap} of tile {tile[1]} of split {tile[0]!r} holds "
                f"values that are not finite or beyond {largest:g}, the limit of {np.dtype(STORED)}"
            )


def _paths(folder: str, layout: Layout) -> list[str]:
    count = -(-len(layout.tiles) // layout.tiles_per_file)
    return [os.path.join(folder, f"features-{number:05d}.array_record") for number in range(count)]
