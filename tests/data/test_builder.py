"""Preparation writes the same files with any number of workers, resumes, is atomic and lists bad tiles."""

import dataclasses
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hfd_jax.core.errors import DataError, WorkdirError, WorkerDiedError
from hfd_jax.data import builder, catalogue
from hfd_jax.data.builder import PairedTiles, prepare
from hfd_jax.data.facts import BandStatistics, Facts, Statistics, check_statistics
from hfd_jax.data.shards import Shard, write_shards
from hfd_jax.data.tiles import Tile
from tests.conftest import run_python

FACTS = Facts("many", ("VV",), ("G",), "uint8", "db", ("a", "b"), ((0, 0, 0), (9, 9, 9)), "x")


@dataclasses.dataclass(frozen=True)
class ManySource:
    """Tiles of 8 x 8; `bad` ones cannot be read, reading is logged into a folder."""

    left_out = {}  # noqa: RUF012
    notes = ()

    bad: tuple[int, ...] = ()
    log: str = ""
    name: str = "many"
    facts: Facts = FACTS
    count: int = 50

    @property
    def settings(self):
        return {"count": self.count}

    def keys(self):
        return {"train": range(self.count), "test": range(self.count, self.count + 20)}

    def read(self, key):
        if self.log:
            Path(self.log, f"{key}-{os.getpid()}-{len(os.listdir(self.log))}").touch()
        if key in self.bad:
            raise DataError(f"tile {key} is bad")
        valid = np.ones((8, 8), bool)
        sar = np.full((8, 8, 1), -1.0 - key / 4, np.float32)
        return Tile(f"t{key}", sar, np.full((8, 8, 1), key, np.uint8), np.full((8, 8), key % 2, np.uint8), valid, valid)


def digest(folder):
    """Names of the files, metadata, and a digest of every stored tile in order. (The order of fields within a record is up to
    the serialiser and differs between processes.)"""
    dataset, sums = catalogue.read_dataset(str(folder)), []
    for split in dataset.sizes:
        source = dataset.source(split)
        for index in range(len(source)):
            tile = source[index]
            sums.append(hashlib.sha1(b"".join(np.asarray(tile[key]).tobytes() for key in sorted(tile))).hexdigest())
    return sorted(p.name for p in Path(folder).iterdir()), Path(folder, "metadata.json").read_text(), sums


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return prepare(catalogue.Scenes, ManySource(), str(tmp_path_factory.mktemp("serial")))


def test_any_number_of_workers_writes_the_same(serial, tmp_path):
    assert digest(serial) == digest(prepare(catalogue.Scenes, ManySource(), str(tmp_path), workers=2))
    assert len(os.listdir(serial)) > 6, "several shards"


def test_order_of_tiles_is_the_order_of_keys(serial):
    source = catalogue.read_dataset(serial).source("train")
    assert [int(source[i]["eo"][0, 0, 0]) for i in range(50)] == list(range(50))


def test_restart_reads_only_what_is_missing(serial, tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    # The 70 tiles make 7 + 3 shards of 8; tile 30 stops the preparation.
    with pytest.raises(DataError, match="tile 30 is bad"):
        prepare(catalogue.Scenes, ManySource(bad=(30,), log=str(log)), str(tmp_path / "data"))
    first = len(os.listdir(log))
    assert 0 < first < 70
    assert catalogue.list_datasets(str(tmp_path / "data")) == []
    directory = prepare(catalogue.Scenes, ManySource(log=str(log)), str(tmp_path / "data"))
    again = len(os.listdir(log)) - first
    assert again <= 70 - 24 + 2, (
        "the three finished shards are not read again, except for the first tile, whose size is needed"
    )
    assert digest(directory) == digest(serial)
    assert not [name for name in os.listdir(Path(directory).parent) if name.startswith(".preparing")]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_tiles_are_left_out_and_listed_on_request(tmp_path, workers):
    source = ManySource(bad=(3, 4, 55))
    with pytest.raises(DataError, match="is bad"):
        prepare(catalogue.Scenes, source, str(tmp_path), workers=workers)
    dataset = catalogue.read_dataset(prepare(catalogue.Scenes, source, str(tmp_path), workers=workers, skip_bad=True))
    assert dataset.sizes == {"train": 48, "test": 19}
    assert dataset.skipped == {"train": ("tile 3 is bad", "tile 4 is bad"), "test": ("tile 55 is bad",)}
    assert {d["id"] for d in (dataset.source("train")[i] for i in range(48))} == {
        b"t%d" % k for k in range(50) if k not in (3, 4)
    }


def test_a_repaired_tile_does_not_mix_with_shards_of_another_size(serial, tmp_path):
    """The first good tile sets the shard size; shards staged with another size must not be reused."""
    for bad in ((0, 60), (60,)):
        with pytest.raises(DataError, match="is bad"):
            prepare(catalogue.Scenes, ManySource(bad=bad), str(tmp_path), workers=2)
    assert digest(prepare(catalogue.Scenes, ManySource(), str(tmp_path))) == digest(serial)


def test_a_data_set_without_its_bad_tiles_is_not_reused_as_complete(serial, tmp_path):
    """A data set prepared with skip_bad is not reused as complete once its tiles are repaired."""
    prepare(catalogue.Scenes, ManySource(bad=(3,)), str(tmp_path), skip_bad=True)
    with pytest.raises(DataError, match=r"1 bad tile\(s\) left out.*replace it with --overwrite"):
        prepare(catalogue.Scenes, ManySource(), str(tmp_path))
    assert digest(prepare(catalogue.Scenes, ManySource(), str(tmp_path), overwrite=True)) == digest(serial)


def test_killed_replacement_leaves_the_old_set(serial, tmp_path):
    final = Path(prepare(catalogue.Scenes, ManySource(), str(tmp_path)))
    final.rename(final.parent / ".replaced-1.0.0")  # as SIGKILL in mid-replacement leaves it
    assert catalogue.list_datasets(str(tmp_path)) == []
    prepare(catalogue.Scenes, ManySource(), str(tmp_path))
    assert digest(final) == digest(serial) and not (final.parent / ".replaced-1.0.0").exists()
    with pytest.raises(DataError, match="tile 5 is bad"):
        prepare(catalogue.Scenes, ManySource(bad=(5,)), str(tmp_path), overwrite=True)
    assert catalogue.find_dataset("scenes/many", str(tmp_path)).sizes["train"] == 50, "the old one came back"


def test_finished_data_open_on_a_read_only_file_system(serial, monkeypatch, tmp_path):
    """Without a lock, and without writing anything; other data are one error."""

    def refuse(*arguments, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(builder.os, "makedirs", refuse)
    monkeypatch.setattr(builder, "locked", refuse)
    root = str(Path(serial).parents[2])
    assert prepare(catalogue.Scenes, ManySource(), root) == serial
    with pytest.raises(DataError, match=r"prepared from different data or settings \(settings.count\)"):
        prepare(catalogue.Scenes, ManySource(count=40), root)
    with pytest.raises(WorkdirError, match=r"cannot be written \(Read-only file system\)"):
        prepare(catalogue.Scenes, ManySource(), str(tmp_path))


def test_without_locks_data_are_prepared_with_a_warning(tmp_path, monkeypatch, caplog):
    def flock(*arguments):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("fcntl.flock", flock)
    prepare(catalogue.Scenes, ManySource(count=5), str(tmp_path))
    assert "file system without locks (Operation not supported)" in caplog.text


def test_a_full_disk_while_preparing_is_one_error(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(builder, "write_shards", full)
    with pytest.raises(WorkdirError, match=r"many: cannot be written \(No space left on device\)"):
        prepare(catalogue.Scenes, ManySource(count=5), str(tmp_path))


class Killed(ManySource):
    def read(self, key):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_error(tmp_path):
    shards = [Shard(Killed(), "train", 0, 0, range(3), str(tmp_path / "a.report.npz"))]
    with pytest.raises(WorkerDiedError, match=r"a worker process died, perhaps out of memory: try fewer --workers"):
        write_shards(shards, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"class_colours": ["#ff0000", [0, 0, 1]]},
            r"the colour of class 'a' is \['#', 'f', .*expected red, green and blue",
        ),
        ({"class_colours": [[0, 0, 1], [300, 0, 0]]}, r"the colour of class 'b' is \[300, 0, 0\]"),
        ({"class_colours": [[0, 0, 1], [1, 2]]}, r"the colour of class 'b' is \[1, 2\]"),
        ({"class_names": None}, r"damaged facts"),
        ({"class_colours": None}, r"damaged facts"),
        (None, r"not valid JSON"),
    ],
)
def test_facts_that_no_picture_can_show_are_refused_when_the_data_open(serial, tmp_path, change, message):
    folder = shutil.copytree(serial, tmp_path / "copy")
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["facts"] |= change or {}
    (folder / "metadata.json").write_text(json.dumps(metadata) if change else "{")
    (folder / "digests.json").unlink()  # as of version 0.1
    with pytest.raises(DataError, match=message):
        catalogue.read_dataset(str(folder))


def test_such_data_are_refused_before_they_are_prepared(tmp_path):
    facts = dataclasses.replace(FACTS, class_colours=((0, 0, 0), (300, 0, 0)))
    with pytest.raises(DataError, match=r"the colour of class 'b' is \[300, 0, 0\]"):
        prepare(catalogue.Scenes, ManySource(facts=facts), str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_large_sets_have_few_files():
    shards = {n: -(-n // builder._tiles_per_shard(ManySource(), range(n))) for n in (10, 1000, 180_000)}
    assert shards[10] <= 2 and shards[1000] <= 16 and shards[180_000] <= builder.MOST_SHARDS


def test_a_split_with_only_bad_tiles_is_an_error(tmp_path):
    with pytest.raises(DataError, match="split 'test': all tiles are bad; the first problem is: tile 50 is bad"):
        prepare(catalogue.Scenes, ManySource(bad=tuple(range(50, 70))), str(tmp_path), skip_bad=True)


def test_a_shard_with_only_bad_tiles_is_accepted(tmp_path):
    dataset = catalogue.read_dataset(
        prepare(catalogue.Scenes, ManySource(bad=tuple(range(8, 16))), str(tmp_path), skip_bad=True)
    )
    assert dataset.sizes["train"] == 42
    source = dataset.source("train")
    assert [source[i]["id"] for i in (7, 8, 41)] == [b"t7", b"t16", b"t49"]


def test_two_concurrent_preparations_write_one_data_set(serial, tmp_path):
    code = "import sys; from tests.data.test_builder import *;prepare(catalogue.Scenes, ManySource(), sys.argv[1])"
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert digest(tmp_path / "scenes" / "many" / "1.0.0") == digest(serial)


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="requirements-beam.txt is not installed")
def test_beam_writes_the_same(tmp_path):
    source = ManySource(count=100)  # more than ten shards, whose names do not sort as numbers
    serial = prepare(catalogue.Scenes, source, str(tmp_path / "serial"))
    code = (
        "import sys; from tests.data.test_builder import *; from apache_beam.options.pipeline_options import PipelineOptions;"
        "options = PipelineOptions(['--runner=DirectRunner']);"
        "prepare(catalogue.Scenes, ManySource(count=100), sys.argv[1], beam=options)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "beam")], check=True)
    one, other = digest(serial), digest(tmp_path / "beam" / "scenes" / "many" / "1.0.0")
    assert len([name for name in one[0] if "-train" in name]) > 10
    assert [name for name in other[0] if not name.endswith("shard_infos.json")] == one[0], "TFDS leaves its own notes"
    assert other[1:] == one[1:]


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="requirements-beam.txt is not installed")
def test_prepare_tool_runs_on_beam(tmp_path):
    flags = ("--dataset=scenes", "--size=64", "--train=4", "--validation=0", "--test=2", "--beam_runner=DirectRunner")
    text = run_python("-m", "tools.prepare_data", *flags, f"--data_dir={tmp_path}").stdout
    assert "tiles: 4 train, 2 test" in text


def test_tfds_reads_it_without_tensorflow(scenes):
    code = (
        "import sys, tensorflow_datasets as tfds; b = tfds.builder_from_directory(sys.argv[1]);"
        "s = b.as_data_source(split='train[:50%]'); assert len(s) == 12 and s[0]['sar'].shape == (64, 64, 2);"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, scenes.directory], check=True)
    assert issubclass(catalogue.Scenes, PairedTiles) and builder.SHARD_TILES > 0


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (-25.0, 5.0, None),
        (0.01, 3.0, "mostly negative. Is the unit 'linear' or 'raw'"),
        (-5.0, 45.0, "below 30 dB. Is the unit 'raw'"),
    ],
)
def test_measured_values_are_checked_against_the_unit(low, high, message):
    bands = BandStatistics((0.0,), (1.0,), (low,), (high,))
    if message is None:
        check_statistics(FACTS, Statistics(bands, bands, (1, 1)))
        return
    with pytest.raises(DataError, match=message):
        check_statistics(FACTS, Statistics(bands, bands, (1, 1)))
    check_statistics(dataclasses.replace(FACTS, sar_unit="raw"), Statistics(bands, bands, (1, 1)))
