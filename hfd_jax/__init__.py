"""Two-stage SAR segmentation: an optical teacher is trained and frozen, a radar student learns from it.

>>> import hfd_jax
>>> student = hfd_jax.load("student.safetensors")  # or the workdir of a run
>>> classes, probabilities = student.predict(image)  # [H, W, bands] in the unit student.unit
"""

import importlib
from typing import Any

# name -> (module, attribute). Imported on first use: JAX and TensorFlow Datasets take seconds.
_LAZY = {
    "load": ("hfd_jax.inference.student", "load"),
    "Student": ("hfd_jax.inference.student", "Student"),
    "read_metrics": ("hfd_jax.evaluation.frames", "read_metrics"),
    "read_evaluation": ("hfd_jax.evaluation.frames", "read_evaluation"),
}


# As in pyproject.toml, which a test compares. importlib.metadata would take a tenth of a second, in which signals would
# not be handled yet.
__version__ = "0.2.0"


def open_dataset(name: str, data_dir: str = "data") -> Any:
    """Opens a prepared data set, newest version.

    `dataset.source("test")[0]` is a dict of arrays of the first test tile: sar [H, W, bands] float32, eo [H, W, bands],
    label [H, W] uint8 (255: no label), sar_valid and eo_valid [H, W] bool. `dataset.sizes` counts the tiles per split,
    `dataset.facts` holds bands, unit and classes, `dataset.statistics` means and standard deviations.

    Args:
      name: as tools.prepare_data printed it, for example "folder/my_data"; several, separated by commas, are read as
        one.
      data_dir: root of the prepared data sets.

    Returns:
      A `hfd_jax.data.catalogue.Dataset`.

    Raises:
      UserError: there is no such data set (the message lists those that exist), or several do not fit together.
    """
    catalogue = importlib.import_module("hfd_jax.data.catalogue")
    return catalogue.find_dataset(name, data_dir)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
