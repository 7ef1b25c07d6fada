"""Validates the config and opens the workdir, the data and the devices that all networks of a run share."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from hfd_jax.core import logs
from hfd_jax.core.checkpoint import check_location
from hfd_jax.core.errors import ConfigError, WorkdirError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.logs import say
from hfd_jax.core.parallel import Jit, Pmap, enable_compilation_cache, make_parallel, same_everywhere, wait_for_all
from hfd_jax.core.workdir import Workdir, check_claim, claim, program_digest, sole_run
from hfd_jax.data import catalogue
from hfd_jax.data.catalogue import Dataset
from hfd_jax.data.facts import Facts
from hfd_jax.evaluation.evaluator import Evaluator
from hfd_jax.train import reading
from hfd_jax.train.networks import NetworkSpec, declared_fields, networks_to_train, teacher_folder
from hfd_jax.train.prerequisites import check_pretrained, check_teacher
from hfd_jax.train.validate import check_against_data, check_fields


@dataclasses.dataclass(frozen=True)
class Run:
    """A run: its validated config, workdir, data set, devices and log."""

    config: ConfigDict
    workdir: Workdir
    dataset: Dataset
    parallel: Jit | Pmap
    log: logs.MetricsLog

    def evaluator(self, split: str) -> Evaluator:
        bands = reading.make_reading(self.config, self.dataset.facts)
        return Evaluator(
            self.dataset, split, bands, self.parallel, self.config.eval.batch_size, self.config.eval.window
        )

    @property
    def decision_split(self) -> str:
        """The split that decisions during the run are based on: validation, or config.eval.split if there is none."""
        return "validation" if self.dataset.sizes.get("validation") else self.config.eval.split

    @property
    def validates_every(self) -> int:
        """Steps between evaluations on the validation split; 0: never."""
        settings, tiles = self.config.train, self.dataset.sizes.get("validation", 0)
        return (settings.checkpoint_every if tiles else 0) if settings.eval_every < 0 else settings.eval_every

    def checkpoint(self, network: str) -> tuple[str, str]:
        """(folder, "latest" or "best") of the checkpoint that is evaluated; for the teacher, the one that teaches."""
        if network == "teacher":
            return teacher_folder(self.config, self.workdir), self.config.teacher.which
        return self.workdir.checkpoints(network), self.config.eval.checkpoint

    def class_pixels(self) -> tuple[int, ...]:
        """Number of labelled pixels per class, among the labels that config.data.label_share keeps."""
        labelled, hidden = reading.labelled_tiles(self.config, self.dataset)
        if not hidden:
            return self.dataset.statistics.class_pixels
        counts = np.zeros(len(self.dataset.facts.class_names), np.int64)
        source = self.dataset.source("train")
        for ref in labelled:
            label = source[ref.index]["label"]
            counts += np.bincount(label[label != IGNORE_LABEL], minlength=len(counts))
        return tuple(int(n) for n in counts)


def check_config(config: ConfigDict, devices: int, workdir: Workdir) -> tuple[Facts, list[NetworkSpec]]:
    """Checks everything about a run that needs no other run, before anything is computed or written.

    Args:
      config: the run's config.
      devices: number of devices of all processes.
      workdir: the run's workdir.

    Returns:
      (facts of the data set, networks to train).

    Raises:
      UserError: the config is invalid or contradicts the data, or the data set or a pretrained encoder is missing.
    """
    check_location(workdir.root)
    check_fields(config, devices)
    check_claim(workdir, config, declared_fields())
    facts, sizes, largest = describe_data(config)
    check_against_data(config, facts, sizes, largest)
    specs = networks_to_train(config)
    check_pretrained(config, workdir, specs)
    return facts, specs


@contextlib.contextmanager
def prepared(config: ConfigDict, root: str) -> Iterator[Run]:
    """Validates the config, locks and claims the workdir, and opens (or simulates) the data.

    Raises:
      UserError: the config is invalid, or another run uses the workdir; nothing has been written.
    """
    enable_compilation_cache()
    workdir = Workdir(root)
    if jax.process_count() > 1:
        check_same_program()
    facts, specs = check_config(config, jax.device_count(), workdir)
    if any(spec.needs_teacher for spec in specs) and not any(spec.name == "teacher" for spec in specs):
        check_teacher(config, workdir, facts, specs)
    with sole_run(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        if jax.process_index() == 0:
            claim(workdir, config, declared_fields())
        wait_for_all("workdir claimed")
        check_shared(workdir)
        run = open_run(config, workdir)
        sizes = ", ".join(f"{count} {split}" for split, count in run.dataset.sizes.items())
        say(f"data: {run.dataset.directory}, {sizes}")
        for note in run.dataset.notes if run.dataset.parts else ():  # prepare_data has shown those of a single one
            say(f"note: {note}")
        say(f"devices: {jax.device_count()} {jax.default_backend()}, {config.parallel}, {config.dtype}")
        yield run


def check_same_program() -> None:
    """Raises ConfigError unless all processes run the same code with the same packages."""
    if not same_everywhere(int(program_digest()[:7], 16)):
        raise ConfigError(
            f"process {jax.process_index()} and others do not run the same program: this package's code or a package's "
            "version differs between the hosts; install the same versions on all of them"
        )


def check_shared(workdir: Workdir) -> None:
    """Raises WorkdirError if this process does not see the files that the first process wrote."""
    if not os.path.exists(workdir.config):
        raise WorkdirError(
            f"{workdir.root}: process {jax.process_index()} does not see what process 0 wrote there; the workdir must "
            "be on a file system that all processes share"
        )


def describe_data(config: ConfigDict):
    """Returns (facts, tiles per split, size of the largest training tile) of the data set, simulated or not."""
    if config.data.name == "scenes":  # known before it exists
        scenes = reading.scene_source(config.data.scenes)
        return scenes.facts, scenes.sizes, (scenes.options.size,) * 2
    dataset = catalogue.find_dataset(config.data.name, config.data.dir)
    return dataset.facts, dataset.sizes, dataset.largest("train") if "train" in dataset.sizes else (0, 0)


def open_run(config: ConfigDict, workdir: Workdir) -> Run:
    """Opens a run whose config has been validated."""
    if config.data.name == "scenes":
        scenes = reading.scene_source(config.data.scenes)
        if jax.process_index() == 0:
            catalogue.prepare_scenes(scenes, config.data.dir)
        wait_for_all("scenes prepared")
        dataset = catalogue.prepare_scenes(scenes, config.data.dir)
    else:
        dataset = catalogue.find_dataset(config.data.name, config.data.dir)
    log = logs.MetricsLog(workdir.metrics)
    return Run(config, workdir, dataset, make_parallel(config.parallel), log)
