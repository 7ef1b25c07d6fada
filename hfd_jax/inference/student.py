"""The Python API of a trained network: load it, apply it to arrays."""

import dataclasses
import os
import warnings

import jax
import numpy as np

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.core.parallel import Jit
from hfd_jax.data.facts import BandStatistics
from hfd_jax.inference.mapping.arrays import ArrayImage, check_array
from hfd_jax.inference.mapping.checks import check_values
from hfd_jax.inference.mapping.predict import Options, Predictor
from hfd_jax.inference.mapping.writer import softmax
from hfd_jax.inference.restore import open_network


@dataclasses.dataclass(frozen=True)
class Student:
    """A trained network and what it expects; made by `load`.

    Attributes:
      title: title of the network.
      sensor: "sar", or "eo" for a teacher.
      bands: names of the input bands, in order.
      unit: of the input: "db" (decibels), "raw" (the data set's own scale), or the NumPy type of EO.
      statistics: mean, std, and the 1st and 99th percentile (`low`, `high`) of each band over the training pixels.
      classes: names; class k of a prediction is classes[k].
      colours: one (r, g, b) of 0 to 255 per class.
      pixel_size: pixel size of the training data, metres; None if unknown.
    """

    title: str
    sensor: str
    bands: tuple[str, ...]
    unit: str
    statistics: BandStatistics = dataclasses.field(repr=False)
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...] = dataclasses.field(repr=False)
    pixel_size: float | None
    _predictor: Predictor = dataclasses.field(repr=False, compare=False)

    def predict(
        self, array: np.ndarray, valid: np.ndarray | None = None, check: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Classifies every pixel.

        Large images are read in overlapping windows whose logits are blended, as `tools.predict` does. The network is
        compiled once per image size (rounded up to multiples of 32 pixels) and window.

        Args:
          array: [H, W, bands] or [B, H, W, bands] of any size, in the unit `unit`; filtered and standardised inside.
            SAR may have any real type, EO a type that the training type can hold.
          valid: [H, W] or [B, H, W] bool, False where there is no data; None if all pixels are valid. Pixels with NaN
            or infinity, and with backscatter outside -80 to 60 dB, are invalid in any case.
          check: compare the values with the training data's unit and scale first. Turn it off for a tiny image that is
            unlike the training data as a whole.

        Returns:
          (classes, probabilities): [..., H, W] uint8 class indices, 255 where invalid; [..., H, W, K] float32 softmax
          probabilities, 0 where invalid.

        Raises:
          DataError: shape, bands or type do not fit, or the values contradict the unit.
        """
        images, masks = check_array(array, valid, self._predictor.wanted)
        if check:
            rows = ArrayImage(
                images.reshape(-1, *images.shape[2:]), masks.reshape(-1, masks.shape[2]), self._predictor.wanted
            )
            check_values(rows)
            _warn(rows.notes)
        classes = np.full(masks.shape, IGNORE_LABEL, np.uint8)
        probabilities = np.zeros((*masks.shape, len(self.classes)), np.float32)
        notes: list[str] = []
        for k, (image, mask) in enumerate(zip(images, masks, strict=True)):
            notes += self._predict(ArrayImage(image, mask, self._predictor.wanted), classes[k], probabilities[k])
        _warn(notes)
        return (classes, probabilities) if np.ndim(array) == 4 else (classes[0], probabilities[0])

    def _predict(self, image: ArrayImage, classes: np.ndarray, probabilities: np.ndarray) -> list[str]:
        """Fills classes [H, W] and probabilities [H, W, K]; returns notes."""

        def write(row, col, logits, valid):
            valid = valid & np.isfinite(logits.sum(0))
            part = slice(row, row + logits.shape[1]), slice(col, col + logits.shape[2])
            classes[part][valid] = np.argmax(logits, 0)[valid]
            probabilities[part][valid] = np.moveaxis(softmax(np.where(valid, logits, 0.0)), 0, -1)[valid]

        self._predictor.predict(image, write)
        return image.notes


def load(path: str | os.PathLike, network: str | None = None, checkpoint: str | None = None) -> Student:
    """Loads a trained network.

    Args:
      path: the workdir of a run, a model file that `tools.export --format=model` wrote, or the folder that holds one.
      network: of a run: "student" (the default), a baseline, or "teacher" (which reads EO).
      checkpoint: of a run: "latest" or "best"; None for the one that the run evaluated.

    Raises:
      UserError: the network does not exist, or its file is damaged.
    """
    parallel = Jit(jax.local_devices())
    predictor = Predictor(open_network(os.fspath(path), network, checkpoint, parallel), parallel, Options())
    wanted, facts = predictor.wanted, predictor.facts
    return Student(
        title=wanted.title,
        sensor=wanted.sensor,
        bands=wanted.bands,
        unit=wanted.unit,
        statistics=wanted.statistics,
        classes=facts.class_names,
        colours=facts.class_colours,
        pixel_size=facts.pixel_size or None,
        _predictor=predictor,
    )


def _warn(notes: list[str]) -> None:
    for note in dict.fromkeys(notes):
        warnings.warn(note, stacklevel=3)
