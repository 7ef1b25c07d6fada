"""What all networks of a run share, checked before anything is computed or written."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from hfd_jax import assembly, reporting
from hfd_jax.config_check import check_against_data, check_fields
from hfd_jax.data import catalogue
from hfd_jax.data.catalogue import Dataset
from hfd_jax.errors import WorkdirError
from hfd_jax.evaluate import Evaluator
from hfd_jax.labels import IGNORE_LABEL
from hfd_jax.parallel import Jit, Pmap, enable_compilation_cache, make_parallel, wait_for_all
from hfd_jax.pretrained import check_pretrained
from hfd_jax.reporting import say
from hfd_jax.teacher import check_teacher
from hfd_jax.workdir import Workdir, check_claim, claim, sole_run


@dataclasses.dataclass(frozen=True)
class Context:
    """A run: its config, its folder, its data and its devices."""

    config: ConfigDict
    workdir: Workdir
    dataset: Dataset
    parallel: Jit | Pmap
    log: reporting.MetricsLog

    def evaluator(self, split: str) -> Evaluator:
        reading = assembly.make_reading(self.config, self.dataset.facts)
        return Evaluator(
            self.dataset, split, reading, self.parallel, self.config.eval.batch_size, self.config.eval.window
        )

    def checkpoint(self, network: str) -> tuple[str, str]:
        """(folder, "latest" or "best") of what is evaluated; the teacher is the one that teaches, wherever it lies."""
        if network == "teacher":
            return assembly.teacher_folder(self.config, self.workdir), self.config.teacher.which
        return self.workdir.checkpoints(network), self.config.eval.checkpoint

    def class_pixels(self) -> tuple[int, ...]:
        """Labelled pixels per class among the labels that are used."""
        labelled, hidden = assembly.labelled_tiles(self.config, self.dataset)
        if not hidden:
            return self.dataset.statistics.class_pixels
        counts = np.zeros(len(self.dataset.facts.class_names), np.int64)
        source = self.dataset.source("train")
        for ref in labelled:
            label = source[ref.index]["label"]
            counts += np.bincount(label[label != IGNORE_LABEL], minlength=len(counts))
        return tuple(int(n) for n in counts)


@contextlib.contextmanager
def prepared(config: ConfigDict, root: str) -> Iterator[Context]:
    """Checks everything, locks and claims the workdir, opens (or simulates) the data.

    Raises:
      UserError: something does not fit, or another run is at work in the folder; nothing has been written then.
    """
    enable_compilation_cache()
    check_fields(config, jax.device_count())
    workdir = Workdir(root)
    check_claim(workdir, config)
    facts, sizes, largest = describe_data(config)
    check_against_data(config, facts, sizes, largest)
    runs = assembly.stages(config)
    if any(run.needs_teacher for run in runs) and not any(run.name == "teacher" for run in runs):
        check_teacher(config, workdir, facts, runs)
    check_pretrained(config, workdir, runs)
    with sole_run(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        if jax.process_index() == 0:
            claim(workdir, config)
        wait_for_all("workdir claimed")
        check_shared(workdir)
        context = open_run(config, workdir)
        sizes = ", ".join(f"{count} {split}" for split, count in context.dataset.sizes.items())
        say(f"data: {context.dataset.directory}, {sizes}")
        say(f"devices: {jax.device_count()} {jax.default_backend()}, {config.parallel}, {config.dtype}")
        yield context


def check_shared(workdir: Workdir) -> None:
    """WorkdirError where this process does not see what the first one has written."""
    if not os.path.exists(workdir.config):
        raise WorkdirError(
            f"{workdir.root}: process {jax.process_index()} does not see what process 0 wrote there; the workdir must "
            "be on a file system that all processes share"
        )


def describe_data(config: ConfigDict):
    """(facts, tiles per split, size of the largest training tile) of the data set, simulated or not."""
    if config.data.name == "scenes":  # known before it exists
        scenes = assembly.scene_source(config.data.scenes)
        return scenes.facts, scenes.sizes, (scenes.options.size,) * 2
    dataset = catalogue.find_dataset(config.data.name, config.data.dir)
    return dataset.facts, dataset.sizes, dataset.largest("train") if "train" in dataset.sizes else (0, 0)


def open_run(config: ConfigDict, workdir: Workdir) -> Context:
    """The context of a run whose config has been checked."""
    if config.data.name == "scenes":
        scenes = assembly.scene_source(config.data.scenes)
        if jax.process_index() == 0:
            catalogue.prepare_scenes(scenes, config.data.dir)
        wait_for_all("scenes prepared")
        dataset = catalogue.prepare_scenes(scenes, config.data.dir)
    else:
        dataset = catalogue.find_dataset(config.data.name, config.data.dir)
    log = reporting.MetricsLog(workdir.metrics)
    return Context(config, workdir, dataset, make_parallel(config.parallel), log)
