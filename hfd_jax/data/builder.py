"""Writes a `TileSource` as a TFDS data set of array_record files: in parallel, restartable and atomically.

On one machine, processes write shards into a staging folder. A shard gets its name only once it is complete, and an
interrupted preparation continues with the first missing shard. The complete shards are linked into TFDS's temporary
folder, which is then renamed to its final name. On a cluster, Apache Beam writes the same shards (`beam`).
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from hfd_jax.core.errors import DataError, writing
from hfd_jax.core.locks import locked
from hfd_jax.data import ground
from hfd_jax.data.cautions import cautions
from hfd_jax.data.facts import SAMPLING, SPLITS, StatisticsAccumulator, check_colours, check_statistics
from hfd_jax.data.integrity import ADVICE, check_digests, write_digests
from hfd_jax.data.shards import FORMAT, Shard, features_of, read_report, report_path, write_shards
from hfd_jax.data.tiles import TileSource

SHARD_BYTES = 2**28  # uncompressed; TFDS holds a whole shard in memory under Beam
SHARD_TILES = 128
MOST_SHARDS = 256  # per split: readers keep every file open, and 1,024 open files is a common limit


@dataclasses.dataclass(eq=False)
class SourceConfig(tfds.core.BuilderConfig):
    """A TFDS builder config that carries its source.

    Attributes:
      source: the data to write.
      skip_bad: leave out and list bad tiles (unreadable, or contradicting the facts) instead of stopping.
      workers: processes on this machine.
      staging: folder of the unfinished preparation.
    """

    source: TileSource | None = None
    skip_bad: bool = False
    workers: int = 1
    staging: str = ""


class PairedTiles(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base TFDS builder of all data sets; metadata.json holds their facts, settings and statistics."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        source = self.builder_config.source
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Paired SAR and optical tiles: {source.facts.name}.",
            features=features_of(source.facts),
            metadata=tfds.core.MetadataDict(
                facts=source.facts.to_dict(),
                settings=source.settings,
                left_out=source.left_out,
                notes=list(source.notes),
            ),
            disable_shuffling=True,  # index i is the i-th key: runs can name tiles, and evaluation knows their sizes
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Shard]]:
        return self._shards(os.path.join(self.data_dir, ".reports"))

    def _shards(self, reports: str) -> dict[str, list[Shard]]:
        os.makedirs(reports, exist_ok=True)
        source, skip_bad = self.builder_config.source, self.builder_config.skip_bad
        shards = {}
        for split, keys in _ordered_keys(source).items():
            size = _tiles_per_shard(source, keys)
            shards[split] = [
                Shard(source, split, k, first, part, report_path(reports, split, k, part), skip_bad)
                for k, (first, part) in enumerate((i, keys[i : i + size]) for i in range(0, len(keys), size))
            ]
        return shards

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        if download_config is not None and download_config.beam_options is not None:
            super()._download_and_prepare(dl_manager, download_config)
            reports = os.path.join(self.data_dir, ".reports")
            self._describe(self._shards(reports))
            shutil.rmtree(reports)
            return
        shards = self._shards(self.builder_config.staging)
        write_shards([s for of_split in shards.values() for s in of_split], self.builder_config.workers)
        for split, of_split in shards.items():
            for shard, path in zip(of_split, self._paths(split, of_split), strict=True):
                _link(shard.staged, os.fspath(path))
        self._describe(shards)

    def _paths(self, split: str, shards: list[Shard]):
        template = self._get_filename_template(split)
        return [template.sharded_filepath(shard_index=shard.index, num_shards=len(shards)) for shard in shards]

    def _describe(self, shards: dict[str, list[Shard]]) -> None:
        """Sets split sizes, statistics, tile sizes and shared ground from the shards' reports."""
        facts = self.builder_config.source.facts
        statistics, infos, metadata = StatisticsAccumulator(facts), [], self.info.metadata
        metadata["shapes"], metadata["skipped"], places = {}, {}, {}
        class_pixels, edges = {}, {}
        for split, of_split in shards.items():
            contents = [read_report(shard.report) for shard in of_split]
            shapes = np.concatenate([content["shapes"] for content in contents]).tolist()
            skipped = [str(line) for content in contents for line in content["skipped"]]
            if not shapes:
                raise DataError(f"split {split!r}: all tiles are bad; the first problem is: {skipped[0]}")
            # If all tiles have the same size, one entry stands for all of them.
            metadata["shapes"][split] = shapes if len({tuple(s) for s in shapes}) > 1 else shapes[:1]
            metadata["skipped"][split] = skipped
            places[split] = tuple(np.concatenate([content[key] for content in contents]) for key in ("corners", "crs"))
            class_pixels[split] = sum(content["class_pixels"] for content in contents)
            edges[split] = np.concatenate([content["edges"] for content in contents])
            if split in ("train", "unlabelled") or "train" not in shards:
                for content in contents:
                    statistics.merge(content)
            # Counts come from the reports under Beam, too: TFDS sorts its own counts as text, "10" before "2".
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[len(content["shapes"]) for content in contents],
                    num_bytes=sum(path.stat().length for path in self._paths(split, of_split)),
                    filename_template=self._get_filename_template(split),
                )
            )
        measured = statistics.finish()
        check_statistics(facts, measured)
        metadata["statistics"] = measured.to_dict()
        metadata["notes"] = [*metadata["notes"], *cautions(facts, class_pixels, edges)]
        overlaps = ground.shared_ground(places)
        metadata["shared_ground"] = {
            f"{one} with {other}": len({i for i, _ in pairs})
            for (one, other), pairs in ((splits.split("/"), pairs) for splits, pairs in overlaps.items())
        }
        self.info.set_splits(tfds.core.splits.SplitDict(infos))


def prepare(
    builder_class: type[PairedTiles],
    source: TileSource,
    data_dir: str,
    *,
    workers: int = 1,
    skip_bad: bool = False,
    overwrite: bool = False,
    beam: Any = None,
) -> str:
    """Writes `source` as `data_dir`/<builder>/<source.name>/<version>, unless it exists.

    Args:
      builder_class: names the data set.
      source: the tiles to write.
      data_dir: root of the prepared data sets.
      workers: processes on this machine.
      skip_bad: leave out and list bad tiles instead of stopping.
      overwrite: replace an existing data set of this name; it is restored if the preparation fails.
      beam: Apache Beam's PipelineOptions, with a runner: it prepares the shards instead of `workers`.

    Returns:
      The folder of the data set.

    Raises:
      DataError: a bad tile, or a data set of this name with other settings.
      WorkdirError: the folder cannot be written, and the data set is not there yet.
    """
    check_colours(source.facts, source.facts.name)
    root = os.path.join(data_dir, _snake_case(builder_class), source.name)
    final = os.path.join(root, str(builder_class.VERSION))
    # Finished data need no lock: they may lie on a read-only file system.
    if not overwrite and _is_same(final, source, skip_bad):
        return final
    with writing(root):
        os.makedirs(root, exist_ok=True)
    with locked(os.path.join(root, ".lock"), lambda: _announce(root)):
        _recover(final)
        if not overwrite and _is_same(final, source, skip_bad):
            return final
        staging = os.path.join(root, f".preparing-{_fingerprint(source, skip_bad)}")
        config = SourceConfig(name=source.name, source=source, skip_bad=skip_bad, workers=workers, staging=staging)
        with writing(root), _restored_on_failure(final):
            _run_tfds(builder_class, config, data_dir, beam)
            write_digests(final)
        for entry in os.listdir(root):
            if entry.startswith(".preparing-"):
                shutil.rmtree(os.path.join(root, entry))
    return final


def _run_tfds(builder_class, config: SourceConfig, data_dir: str, beam: Any) -> None:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns about configs that the builder class does not list
    try:
        builder = builder_class(data_dir=data_dir, config=config, file_format=FORMAT)
    finally:
        logging.set_verbosity(verbosity)
    tfds.disable_progress_bar()  # ours counts tiles and shows the remaining time
    download_config = None
    if beam is not None:  # TFDS takes the runner in addition to the options that name it
        runner = beam.get_all_options()["runner"]
        download_config = tfds.download.DownloadConfig(beam_runner=runner, beam_options=beam)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS reports downloads and unknown sizes
        builder.download_and_prepare(download_dir=config.staging, download_config=download_config)


def _ordered_keys(source: TileSource) -> dict[str, Sequence[Any]]:
    keys = source.keys()
    return {split: keys[split] for split in SPLITS if len(keys.get(split, ()))}


def _tiles_per_shard(source: TileSource, keys: Sequence[Any]) -> int:
    """Depends on the data alone, so that any number of workers writes the same files."""
    size = 1
    for key in keys[:100]:
        with contextlib.suppress(DataError):
            tile = source.read(key)
            size = sum(array.nbytes for array in (tile.sar, tile.eo, tile.sar_valid, tile.eo_valid, tile.sar_valid))
            break
    fitting = max(1, min(SHARD_TILES, SHARD_BYTES // size))
    return max(min(fitting, max(8, -(-len(keys) // 16))), -(-len(keys) // MOST_SHARDS))


def _snake_case(builder_class: type) -> str:
    return tfds.core.naming.camelcase_to_snakecase(builder_class.__name__)


def _fingerprint(source: TileSource, skip_bad: bool) -> str:
    text = json.dumps([source.facts.to_dict(), source.settings, skip_bad, SAMPLING], sort_keys=True)
    keys = repr({split: list(keys) for split, keys in source.keys().items()})
    return hashlib.sha1((text + keys).encode()).hexdigest()[:12]


def _is_same(directory: str, source: TileSource, skip_bad: bool) -> bool:
    """Whether the data set has been prepared from this source; DataError if it was from another, or is damaged."""
    if not os.path.exists(os.path.join(directory, "metadata.json")):
        return False
    check_digests(directory)
    differing = _differing_settings(directory, source, skip_bad)
    if differing:
        raise DataError(
            f"{directory} exists, prepared from different data or settings ({', '.join(differing)}); "
            "replace it with --overwrite, or keep both with another name or --data_dir"
        )
    return True


def _announce(root: str) -> None:
    print(f"waiting: another process is preparing {root}", flush=True)


def _differing_settings(directory: str, source: TileSource, skip_bad: bool) -> list[str]:
    path = os.path.join(directory, "metadata.json")
    try:
        with open(path, encoding="utf-8") as file:
            stored = json.load(file)
    except ValueError as error:  # a data set without digests
        raise DataError(f"{path}: damaged, not valid JSON ({error}); {ADVICE}") from error
    current = json.loads(json.dumps({"facts": source.facts.to_dict(), "settings": source.settings}))
    differing = [
        f"{part}.{key}"
        for part in ("facts", "settings")
        for key in sorted(current[part].keys() | stored[part].keys())
        if current[part].get(key) != stored[part].get(key)
    ]
    skipped = sum(map(len, stored["skipped"].values()))
    return [*differing, f"{skipped} bad tile(s) left out"] if skipped and not skip_bad else differing


def _link(staged: str, final: str) -> None:
    """Links a finished shard to its final path and keeps it in the staging folder."""
    try:
        os.link(staged, final)
    except OSError:  # a file system without hard links
        shutil.copyfile(staged, final)


def _set_aside(folder: str) -> str:
    return os.path.join(os.path.dirname(folder), f".replaced-{os.path.basename(folder)}")


def _recover(folder: str) -> None:
    """Restores the old folder after a killed replacement; removes it if the replacement was complete."""
    old = _set_aside(folder)
    if os.path.exists(old) and not os.path.exists(folder):
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _restored_on_failure(folder: str):
    """Moves `folder` aside; restores it if its replacement fails, removes it otherwise."""
    old = _set_aside(folder)
    if os.path.exists(folder):
        os.replace(folder, old)
    try:
        yield
    except BaseException:
        if os.path.exists(old):
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
