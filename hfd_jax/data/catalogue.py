"""Opens prepared data sets by name, several as one, and prepares the simulated one on first use."""

import dataclasses
import glob
import json
import math
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from hfd_jax.core.errors import DataError, nearest
from hfd_jax.core.options import option
from hfd_jax.data import simulator
from hfd_jax.data.builder import PairedTiles, prepare
from hfd_jax.data.facts import SPLITS, Facts, Statistics, check_colours
from hfd_jax.data.integrity import ADVICE, TileSequence, check_digests
from hfd_jax.data.simulated.region import STANDARD, Region, draw_region
from hfd_jax.data.tiles import Tile


class Scenes(PairedTiles):
    """Simulated pairs (see `simulator.py`)."""

    VERSION = PairedTiles.VERSION


@dataclasses.dataclass(frozen=True)
class SceneSource:
    """A `TileSource` of simulated tiles: `train`, `validation` and `test` tiles in this order of index."""

    options: simulator.SceneOptions
    train: int = option(600, "training tiles", above=0)
    validation: int = option(100, "validation tiles", at_least=0)
    test: int = option(200, "test tiles", at_least=0)

    @property
    def settings(self) -> dict[str, Any]:
        settings = {**dataclasses.asdict(self), "simulator": simulator.VERSION}
        settings["options"] = {
            name: value for name, value in settings["options"].items() if value or name not in simulator.LATER
        }
        return settings

    left_out: ClassVar[dict[str, int]] = {}
    notes: ClassVar[list[str]] = []

    @property
    def facts(self) -> Facts:
        return Facts(
            name="scenes",
            sar_bands=simulator.SAR_BANDS,
            eo_bands=simulator.EO_BANDS,
            eo_dtype="uint8",
            sar_unit="db",
            class_names=simulator.CLASS_NAMES,
            class_colours=simulator.CLASS_COLOURS,
            look_axis="x",
            pixel_size=self.options.pixel_size,
        )

    @property
    def name(self) -> str:
        o = self.options
        return (
            f"{o.size}px_{o.pixel_size:g}m_{o.looks:g}looks_{o.incidence:g}deg_{o.misregistration:g}shift_"
            f"{o.unlabelled_share:g}unlabelled_seed{o.seed}_{self.train}-{self.validation}-{self.test}"
            + "".join(f"_{getattr(o, name):g}{name}" for name in simulator.LATER if getattr(o, name))
        )

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(keys) for split, keys in self.keys().items() if len(keys)}

    def keys(self) -> dict[str, range]:
        first = round(self.train * (1 - self.options.unlabelled_share))
        ends = (self.train, self.train + self.validation, self.train + self.validation + self.test)
        return {
            "train": range(0, first),
            "unlabelled": range(first, ends[0]),
            "validation": range(ends[0], ends[1]),
            "test": range(ends[1], ends[2]),
        }

    def read(self, key: int) -> Tile:
        split = next(split for split, keys in self.keys().items() if key in keys)
        scene = simulator.simulate(key, self._labelled_for(split), self._region(split, key))
        label = None if split == "unlabelled" else scene.label
        return Tile(f"scene_{key}", scene.sar, scene.eo, label, np.ones(scene.label.shape, bool), scene.clear)

    def _labelled_for(self, split: str) -> simulator.SceneOptions:
        """The test split tells the truth; the others have the labels of an annotator."""
        return self.options.with_true_labels() if split == "test" else self.options

    def _region(self, split: str, key: int) -> Region:
        """The region of a tile: those of training (with the unlabelled pairs), validation and test tiles differ."""
        if not self.options.regions:
            return STANDARD
        place = {"train": 0, "unlabelled": 0, "validation": 1, "test": 2}[split]
        return draw_region(self.options.seed, place * self.options.regions + key % self.options.regions)


class Chain(Sequence):
    """The elements of several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Any]]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: int) -> Any:
        index += len(self) if index < 0 else 0
        for part in self._parts:
            if 0 <= index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    Attributes:
      directory: folder of the data set, including its version.
      facts, statistics: declared facts and measured statistics.
      sizes: number of tiles per split.
      shapes: (H, W) of each tile per split; a single entry stands for all.
      skipped: what was wrong with the tiles that were left out, per split.
      left_out: reason -> number of raw tiles that belong to no split.
      notes: remarks of the reader and cautions about the data.
      shared_ground: "train with test" -> number of the first split's tiles that overlap one of the second's.
      parts: the data sets that `join` made this one of; () if it lies in `directory`.
    """

    directory: str
    facts: Facts
    statistics: Statistics
    sizes: dict[str, int]
    shapes: dict[str, list[tuple[int, int]]]
    skipped: dict[str, tuple[str, ...]]
    left_out: dict[str, int]
    shared_ground: dict[str, int]
    notes: list[str]
    parts: tuple["Dataset", ...] = ()

    def source(self, split: str) -> Sequence[dict[str, Any]]:
        """Random access to the tiles of a split; DataError for an unknown split or a damaged shard."""
        self._check(split)
        if self.parts:
            return Chain([part.source(split) for part in self.parts if split in part.sizes])
        where = f"{self.directory}, split {split}"
        try:
            return TileSequence(tfds.builder_from_directory(self.directory).as_data_source(split=split), where)
        except Exception as error:  # a missing or damaged shard, which is opened here
            raise DataError(f"{where}: cannot be opened ({type(error).__name__}: {error}); {ADVICE}") from error

    def tile_ids(self, tiles: Sequence[tuple[str, int]]) -> list[str]:
        """Ids of the tiles given as (split, index); reads each tile."""
        sources = {split: self.source(split) for split in {split for split, _ in tiles}}
        return [sources[split][index]["id"].decode() for split, index in tiles]

    def shape(self, split: str, index: int) -> tuple[int, int]:
        shapes = self.shapes[split]
        return shapes[0] if len(shapes) == 1 else shapes[index]

    def largest(self, split: str) -> tuple[int, int]:
        """The largest height and the largest width among the tiles of a split."""
        return max(h for h, _ in self.shapes[split]), max(w for _, w in self.shapes[split])

    def size(self, split: str) -> int:
        self._check(split)
        return self.sizes[split]

    def _check(self, split: str):
        if split not in self.sizes:
            raise DataError(f"{self.directory}: no split {split!r}; {nearest(split, self.sizes)}")


def read_dataset(directory: str) -> Dataset:
    """Opens the prepared data set in `directory`; DataError if it is not a prepared data set or is damaged."""
    check_digests(directory)
    path = os.path.join(directory, "metadata.json")
    if not os.path.exists(path):
        raise DataError(f"{path}: missing; is {directory} a data set that tools.prepare_data wrote?")
    try:
        with open(path, encoding="utf-8") as file:
            metadata: dict[str, Any] = json.load(file)
    except ValueError as error:
        raise DataError(f"{path}: damaged, not valid JSON ({error}); prepare the data set again") from error
    missing = {"facts", "statistics", "shapes", "skipped", "left_out", "shared_ground"} - set(metadata)
    if missing:
        raise DataError(f"{path}: incomplete, without {', '.join(sorted(missing))}; prepare the data set again")
    try:
        splits = tfds.builder_from_directory(directory).info.splits
    except Exception as error:  # whatever TFDS makes of a damaged file, in a data set without digests
        raise DataError(f"{directory}: cannot be opened ({type(error).__name__}: {error}); {ADVICE}") from error
    return Dataset(
        directory=directory,
        facts=_facts(metadata["facts"], path),
        statistics=Statistics.from_dict(metadata["statistics"]),
        sizes={name: info.num_examples for name, info in splits.items()},
        shapes={split: [tuple(shape) for shape in shapes] for split, shapes in metadata["shapes"].items()},
        skipped={split: tuple(lines) for split, lines in metadata["skipped"].items()},
        left_out=metadata["left_out"],
        shared_ground=metadata["shared_ground"],
        notes=metadata.get("notes", []),  # version 0.1 wrote none
    )


def _facts(stored: dict[str, Any], path: str) -> Facts:
    """The facts of a data set; raises DataError, naming `path`, if they are unusable."""
    try:
        facts = Facts.from_dict(stored)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: damaged facts ({type(error).__name__}: {error}); prepare the data set again"
        ) from error
    check_colours(facts, path, "Correct the description and prepare the data set again with --overwrite")
    return facts


def find_dataset(name: str, data_dir: str) -> Dataset:
    """Opens the newest version of `data_dir`/`name`, or of several data sets as one, see `join`.

    Args:
      name: as tools.prepare_data printed it, for example "folder/my_data"; several names are separated by commas.
      data_dir: root of the prepared data sets.

    Raises:
      DataError: a data set does not exist (the message lists the existing ones and how to prepare it), or several do
        not fit together.
    """
    names = [part.strip() for part in name.split(",")]
    if len(set(names)) < len(names):
        raise DataError(f"data.name={name!r} names a data set twice")
    return join([_find(part, data_dir) for part in names])


def _find(name: str, data_dir: str) -> Dataset:
    root = os.path.join(data_dir, name)
    found = glob.glob(os.path.join(glob.escape(root), "[0-9]*", "dataset_info.json"))
    versions = sorted((os.path.basename(os.path.dirname(path)) for path in found), key=tfds.core.Version)
    if not versions:
        existing = ", ".join(list_datasets(data_dir)) or "none"
        raise DataError(
            f"{root}: no prepared data set (data.name={name!r}, data.dir={data_dir!r}); existing: {existing}. "
            f"Write it with: python -m tools.prepare_data --dataset={name.split('/')[0]} --raw_dir=... "
            f"--data_dir={data_dir}"
        )
    return read_dataset(os.path.join(root, versions[-1]))


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Several data sets as one: in every split, the tiles of the first, then those of the second, ...

    All must have the same bands, unit, type, classes, look axis and, where it is known, pixel size. The first sets
    names, colours and the statistics that normalise the input; the labelled pixels are those of all. Tiles of different
    data sets on the same ground are not looked for.

    Raises:
      DataError: the data sets do not fit together; the message names every difference.
    """
    first, *others = datasets
    if not others:
        return first
    differences = [difference for other in others for difference in _differences(first.facts, other.facts)]
    if differences:
        raise DataError(f"{first.facts.name} cannot be joined with other data sets: " + "; ".join(differences))
    splits = [split for split in SPLITS if any(split in part.sizes for part in datasets)]
    pixels = np.sum([part.statistics.class_pixels for part in datasets], 0)
    return Dataset(
        directory=", ".join(part.directory for part in datasets),
        facts=dataclasses.replace(first.facts, name=", ".join(part.facts.name for part in datasets)),
        statistics=dataclasses.replace(first.statistics, class_pixels=tuple(int(count) for count in pixels)),
        sizes={split: sum(part.sizes.get(split, 0) for part in datasets) for split in splits},
        shapes={
            split: [part.shape(split, i) for part in datasets for i in range(part.sizes.get(split, 0))]
            for split in splits
        },
        skipped={
            split: tuple(line for part in datasets for line in part.skipped.get(split, ()))
            for split in dict.fromkeys(split for part in datasets for split in part.skipped)
        },
        left_out=_summed([part.left_out for part in datasets]),
        shared_ground=_summed([part.shared_ground for part in datasets]),
        notes=[f"{part.facts.name}: {note}" for part in datasets for note in part.notes]
        + [note for other in others for note in _shifts(first, other)],
        parts=tuple(datasets),
    )


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {key: sum(part.get(key, 0) for part in counts) for key in dict.fromkeys(k for part in counts for k in part)}


def _differences(one: Facts, other: Facts) -> list[str]:
    names = ("sar_bands", "eo_bands", "sar_unit", "eo_dtype", "class_names", "look_axis")
    found = [name for name in names if getattr(one, name) != getattr(other, name)]
    if one.pixel_size and other.pixel_size and not math.isclose(one.pixel_size, other.pixel_size, rel_tol=0.01):
        found.append("pixel_size")
    return [f"{name} is {getattr(one, name)} in it and {getattr(other, name)} in {other.name}" for name in found]


def _shifts(first: Dataset, other: Dataset) -> list[str]:
    """Notes on the bands whose mean over `other` lies more than a standard deviation from that over `first`."""
    return [
        f"{sensor} band {band} has mean {mean:.4g} in {other.facts.name}, more than a standard deviation from "
        f"{centre:.4g} in {first.facts.name}, which normalises the input of both"
        for sensor in ("sar", "eo")
        for band, centre, std, mean in zip(
            getattr(first.facts, f"{sensor}_bands"),
            getattr(first.statistics, sensor).mean,
            getattr(first.statistics, sensor).std,
            getattr(other.statistics, sensor).mean,
            strict=True,
        )
        if abs(mean - centre) > std
    ]


def list_datasets(data_dir: str) -> list[str]:
    """Names of all prepared data sets below `data_dir`, as `find_dataset` takes them."""
    found = {
        os.path.relpath(os.path.dirname(folder), data_dir)
        for folder, _, files in os.walk(data_dir)
        if "dataset_info.json" in files and not os.path.basename(folder).startswith(".")
    }
    return sorted(found)


def prepare_scenes(source: SceneSource, data_dir: str) -> Dataset:
    """Opens the simulated data set; writes it first if it does not exist."""
    tiles = source.train + source.validation + source.test
    workers = 1 if tiles < 200 else min(os.cpu_count() or 1, 8)  # starting a worker takes seconds
    return read_dataset(prepare(Scenes, source, data_dir, workers=workers))
