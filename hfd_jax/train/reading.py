"""Builds from a run's config what it reads: the simulated scenes, the pools of tiles, bands and readers.

Separate from `build`, which needs no library that reads data.
"""

from ml_collections import ConfigDict

from hfd_jax.data.catalogue import Dataset, SceneSource
from hfd_jax.data.facts import Facts
from hfd_jax.data.pipeline import Pool, Reading, Ref, training_pools
from hfd_jax.data.simulator import SceneOptions
from hfd_jax.train.build import band_index, chosen_bands
from hfd_jax.train.networks import NetworkSpec


def scene_source(scenes: ConfigDict) -> SceneSource:
    counts = {split: scenes[split] for split in ("train", "validation", "test")}
    return SceneSource(SceneOptions(**{k: v for k, v in scenes.items() if k not in counts}), **counts)


def labelled_tiles(config: ConfigDict, dataset: Dataset) -> tuple[list[Ref], list[Ref]]:
    """Splits the training tiles into (labelled, unlabelled)."""
    return training_pools(dataset, config.data.label_share, config.seed)


def make_pools(config: ConfigDict, dataset: Dataset, spec: NetworkSpec) -> list[Pool]:
    """Returns the tiles that the batches of a network draw from.

    Every network takes a full batch of labelled pairs per step, in the same order. A distilling student takes
    `data.unlabelled_ratio` times as many unlabelled pairs beside it.
    """
    labelled, unlabelled = labelled_tiles(config, dataset)
    pools = [Pool(labelled, config.data.batch_size)]
    beside = unlabelled_per_batch(config)
    return [*pools, Pool(unlabelled, beside)] if spec.distils and unlabelled and beside else pools


def unlabelled_per_batch(config: ConfigDict) -> int:
    """Returns the number of unlabelled pairs per step of a distilling student."""
    return round(config.data.unlabelled_ratio * config.data.batch_size)


def make_reading(config: ConfigDict, facts: Facts) -> Reading:
    """Describes which bands are read, and by how many threads and processes."""
    index = {
        f"{sensor}_index": band_index(chosen_bands(config, facts, sensor), facts, sensor) for sensor in ("sar", "eo")
    }
    return Reading(**index, threads=config.data.threads, workers=config.data.workers)
