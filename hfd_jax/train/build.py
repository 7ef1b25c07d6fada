"""Builds every object of a run from its config: network, input, objective, optimiser, the checkpoints' record."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from hfd_jax.data.augment import Augmentation
from hfd_jax.data.facts import BandStatistics, Facts, Statistics
from hfd_jax.data.inputs import InputSpec
from hfd_jax.data.normalise import Normalisation
from hfd_jax.distill.registry import METHODS, Combined
from hfd_jax.models.base import SegmentationNetwork
from hfd_jax.models.registry import DTYPES
from hfd_jax.models.registry import build as build_network
from hfd_jax.train import optimiser
from hfd_jax.train.networks import NetworkSpec, model_config
from hfd_jax.train.steps import Objective

if TYPE_CHECKING:
    from hfd_jax.data.catalogue import Dataset


def make_model(config: ConfigDict, spec: NetworkSpec, classes: int) -> SegmentationNetwork:
    """Builds the network of a spec for `classes` classes."""
    options = {"dtype": DTYPES[config.dtype], "remat": config.train.remat}
    options |= {"pool_size": config.data.crop, "classes": classes}
    return build_network(model_config(config, spec), **options)


def teacher_dtype(config: ConfigDict, teacher: SegmentationNetwork) -> Any:
    """The dtype that the frozen teacher computes in."""
    return DTYPES[config.teacher.dtype] if config.teacher.dtype else teacher.dtype


def chosen_bands(config: ConfigDict, facts: Facts, sensor: str) -> tuple[str, ...]:
    """The names of the bands that the network reads from `sensor`, in order."""
    return tuple(config.data[f"{sensor}_bands"]) or getattr(facts, f"{sensor}_bands")


def band_index(bands: tuple[str, ...], facts: Facts, sensor: str) -> tuple[int, ...]:
    stored = getattr(facts, f"{sensor}_bands")
    return tuple(stored.index(band) for band in bands)


def make_inputs(config: ConfigDict, facts: Facts, statistics: Statistics) -> InputSpec:
    """Describes how stored values become network input."""

    def select(sensor: str) -> BandStatistics:
        return getattr(statistics, sensor).select(band_index(chosen_bands(config, facts, sensor), facts, sensor))

    return InputSpec(
        sar=select("sar"),
        eo=select("eo"),
        normalisation=Normalisation(sar_unit=facts.sar_unit, **config.normalise.to_dict()),
        augmentation=Augmentation(**config.augment.to_dict()),
        look_axis=facts.look_axis,
    )


def make_objective(
    config: ConfigDict, spec: NetworkSpec, steps: int, class_pixels: Callable[[], tuple[int, ...]]
) -> Objective:
    """Builds the loss of a network. `class_pixels`, which may read every label, is called only for class weights."""
    methods = config.distill.method if spec.distils else ()
    return Objective(
        ce=config.loss.ce,
        dice=config.loss.dice,
        class_weights=class_weights(class_pixels()) if config.loss.class_weights == "inverse_sqrt" else None,
        distil=tuple((method, config.distill[method].weight) for method in methods),
        warmup_steps=round(config.distill.warmup * steps),
        fading=tuple(method for method in methods if config.distill[method].get("fade", False)),
        steps=steps,
        max_share=config.distill.max_share,
        min_confidence=config.distill.min_confidence,
    )


def class_weights(class_pixels: tuple[int, ...]) -> tuple[float, ...]:
    """Returns 1 / sqrt(frequency), scaled to mean 1 over the classes that occur; 0 for a class without pixels."""
    pixels = np.asarray(class_pixels, np.float64)
    weights = np.where(pixels > 0, 1 / np.sqrt(np.maximum(pixels, 1)), 0.0)
    return tuple(float(w) for w in weights / weights[pixels > 0].mean())


def make_distiller(config: ConfigDict, spec: NetworkSpec) -> Combined | None:
    """Builds the distillation methods of a network; None if it does not distil."""
    if not spec.distils:
        return None
    return Combined(tuple(make_method(config, method) for method in config.distill.method))


def make_method(config: ConfigDict, method: str) -> nn.Module:
    """Builds the module of a method; the fields of its config are the module's options."""
    return METHODS[method](steps=config.student.steps, **config.distill[method])


def make_schedule(config: ConfigDict, steps: int, student: bool = False):
    """Returns the learning rate as a function of the update; `student`: of a student or SAR baseline."""
    peak = (config.student.learning_rate if student else 0) or config.optim.learning_rate
    return optimiser.learning_rate(peak, config.optim.schedule, steps, round(config.optim.warmup * steps))


def make_optimiser(config: ConfigDict, steps: int, student: bool = False):
    schedule = make_schedule(config, steps, student)
    return optimiser.make_optimiser(schedule, config.optim.weight_decay, config.optim.clip_norm)


def make_record(
    config: ConfigDict, spec: NetworkSpec, dataset: "Dataset", inputs: InputSpec, versions: dict[str, str]
) -> dict[str, Any]:
    """Describes a network in its checkpoints, so that it can be rebuilt without the config."""
    return {
        "network": spec.name,
        "title": spec.title,
        "sensor": spec.sensor,
        "model": model_config(config, spec),
        "dtype": config.dtype,
        "bands": {sensor: list(chosen_bands(config, dataset.facts, sensor)) for sensor in ("sar", "eo")},
        "facts": dataset.facts.to_dict(),
        "tiles": dataset.sizes,
        "inputs": dataclasses.asdict(inputs),
        "config": config.to_dict(),
        "versions": versions,
    }
