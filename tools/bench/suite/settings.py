"""Sizes of the suite, and the configs and weights that its parts share."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import default
from hfd_jax.models.registry import ARCHITECTURES
from hfd_jax.train.steps import Setup
from tools.bench import cases
from tools.bench.cases import Shapes
from tools.bench.suite import toy


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the suite.

    Attributes:
      minutes: time for all parts together.
      model: architecture and method of all networks, as further fields of the config.
      dtype: computation dtype of the timed and of the trained networks.
      depth, width: of the timed ResNet.
      size: edge of the timed images, pixels.
      batch: pairs per step to begin with; larger ones are tried if the device states its memory.
      seconds: time to spend on each timed step.
      numbers_depth, numbers_width, numbers_size, numbers_batch, numbers_steps: of the steps whose numbers are compared.
      scene_size: edge of the simulated scenes that are trained on, pixels.
      scenes, held_out: simulated scenes for training, and for evaluation.
      scene_depth, scene_width, scene_batch: network and batch of the training.
      training_steps: steps of each network.
      training_seconds: a network stops early after this time without its compilation.
    """

    minutes: float = 8.0
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "bfloat16"
    depth: int = 50
    width: int = 64
    size: int = 512
    batch: int = 32
    seconds: float = 8.0
    numbers_depth: int = 18
    numbers_width: int = 16
    numbers_size: int = 64
    numbers_batch: int = 8
    numbers_steps: Sequence[str] = ("teacher_step", "sar_step", "student_step")
    scene_size: int = 256
    scenes: int = 256
    held_out: int = 32
    scene_depth: int = 18
    scene_width: int = 64
    scene_batch: int = 16
    training_steps: int = 800
    training_seconds: float = 45.0


# Runs every part on a CPU in well under a minute; its figures mean nothing.
TINY = Settings(
    model={
        "model.architecture": toy.NAME,
        "distill.hfd.taps": ["A"],
        "distill.hfd.tap_weights": [1.0],
    },
    dtype="float32",
    size=64,
    batch=2,
    seconds=0.1,
    numbers_batch=2,
    numbers_steps=("student_step",),
    scene_size=64,
    scenes=8,
    held_out=4,
    scene_batch=2,
    training_steps=4,
    training_seconds=5.0,
)
CLASSES, SAR_BANDS, EO_BANDS = 5, 4, 3


def make_config(settings: Settings, depth: int, width: int, size: int, dtype: str, **fields: Any) -> ConfigDict:
    """Returns the default config with these sizes; `fields` are further fields, by their full name."""
    ARCHITECTURES.setdefault(toy.NAME, toy.Toy)
    config = default.get_config().copy_and_resolve_references()
    sizes = {"model.depth": depth, "model.width": width, "data.crop": size, "dtype": dtype}
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.model.items()}
    config.update_from_flattened_dict(sizes | lists | fields)
    return config


def timed(settings: Settings, batch: int) -> tuple[ConfigDict, Shapes]:
    """Returns the config and shapes of the timed steps."""
    config = make_config(settings, settings.depth, settings.width, settings.size, settings.dtype)
    return config, Shapes(batch, settings.size, SAR_BANDS, EO_BANDS, CLASSES)


@dataclasses.dataclass(frozen=True)
class Job:
    """What a part of the suite is given.

    Attributes:
      settings: the sizes.
      results: name -> results of the parts before it.
      folder: where files may be written.
      say: reports progress.
      keep: stores results so far, in case that the part is stopped.
    """

    settings: Settings
    results: Mapping[str, Any]
    folder: str
    say: Callable[[str], None]
    keep: Callable[[dict[str, Any]], None] = lambda found: None


def fixed_arguments(setup: Setup, shapes: Shapes) -> Any:
    """Returns (state, teacher's variables) for a training step as host arrays, the same on every device.

    They are drawn with NumPy, since an initialiser takes longer to compile, and its numbers may differ between devices
    in the last bit.
    """
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = str(getattr(path[-1], "key", ""))
        if "opt_state" in jax.tree_util.keystr(path):  # has the names of the parameters
            return np.zeros(leaf.shape, leaf.dtype)
        if name == "kernel":
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return (deviation * rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype)
        return np.full(leaf.shape, name in ("scale", "var"), leaf.dtype)

    return jax.tree.map_with_path(
        fill, jax.eval_shape(lambda: cases.initial_arguments(setup, shapes, _Untransformed()))
    )


class _Untransformed:
    """Runs an initialiser as it is, so that it can be traced for its shapes."""

    def init(self, function: Callable, *args) -> Any:
        return function(*args)
