"""One confusion matrix over a whole split, and every score derived from it.

Rows are the reference, columns the prediction. `confusion_matrix` runs on the device; the scores are plain NumPy.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from hfd_jax.core.labels import IGNORE_LABEL

if TYPE_CHECKING:
    import pandas as pd

PER_CLASS = ("iou", "f1", "precision", "recall")
SUMMARY = ("mean_iou", "macro_f1", "accuracy", "kappa")


def confusion_matrix(prediction, label, classes: int):
    """Counts pixels by (reference, prediction).

    Args:
      prediction: [...] integers in 0 .. classes - 1.
      label: [...] integers in 0 .. classes - 1, or IGNORE_LABEL.
      classes: K.

    Returns:
      [K, K] int32; ignored pixels are not in it.
    """
    count = counted_by_cell if jax.default_backend() == "cpu" else counted_by_product
    return count(prediction, label, classes)


def counted_by_cell(prediction, label, classes: int):
    """`confusion_matrix` for the CPU, where a matrix product takes more than ten times as long."""
    # One more bin than cells takes the ignored pixels.
    cell = jnp.where(
        label == IGNORE_LABEL, classes**2, label.astype(jnp.int32) * classes + prediction.astype(jnp.int32)
    )
    return jnp.bincount(cell.ravel(), length=classes**2 + 1)[:-1].reshape(classes, classes)


def counted_by_product(prediction, label, classes: int):
    """`confusion_matrix` for accelerators, without a scatter: a matrix product of indicators.

    Exact up to 2^24 pixels per entry of the first axis, since their counts are summed in float32.
    """
    rows, columns = (
        jax.nn.one_hot(x.reshape(x.shape[0], -1), classes, dtype=jnp.bfloat16) for x in (label, prediction)
    )
    counts = jnp.einsum("bnr,bnc->brc", rows, columns, preferred_element_type=jnp.float32)
    return jnp.sum(counts.astype(jnp.int32), 0)


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of a confusion matrix.

    A class with neither reference nor predicted pixels has no score (NaN) and is excluded from the means; `absent`
    names it.

    Attributes:
      iou, f1, precision, recall: [K] float64, one per class.
      mean_iou: mean of iou over the classes that occur.
      macro_f1: mean of f1 over the classes that occur (not the F1 of mean precision and recall).
      accuracy: share of correct pixels (overall accuracy).
      kappa: Cohen's kappa.
      pixels, ignored: counts.
      absent: names of the classes excluded from the means.
      matrix: [K, K] int64, rows are the reference.
    """

    class_names: tuple[str, ...]
    iou: np.ndarray
    f1: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    mean_iou: float
    macro_f1: float
    accuracy: float
    kappa: float
    pixels: int
    ignored: int
    absent: tuple[str, ...]
    matrix: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a missing score is None."""
        per_class = {
            name: {key: _or_none(getattr(self, key)[k]) for key in PER_CLASS} for k, name in enumerate(self.class_names)
        }
        scalars = {key: _or_none(getattr(self, key)) for key in SUMMARY}
        counts = {"pixels": self.pixels, "ignored": self.ignored, "absent_classes": list(self.absent)}
        return {**scalars, **counts, "per_class": per_class, "confusion_matrix": self.matrix.tolist()}

    def to_frame(self) -> "pd.DataFrame":
        """One row per class, and a last row "mean" over the classes that have a value.

        Columns: iou, f1, precision, recall (0 to 1, NaN if undefined) and pixels (of the reference; in "mean" all of
        them). `frame.attrs` holds mean_iou, macro_f1, accuracy, kappa, pixels and ignored.
        """
        import pandas as pd  # noqa: PLC0415 - slow, and neither training nor evaluation needs it

        frame = pd.DataFrame({key: getattr(self, key) for key in PER_CLASS}, index=list(self.class_names))
        frame.loc["mean"] = frame.mean()
        frame["pixels"] = [*self.matrix.sum(1).tolist(), self.pixels]
        frame.attrs = {key: getattr(self, key) for key in (*SUMMARY, "pixels", "ignored")}
        return frame


def _or_none(value) -> float | None:
    return None if np.isnan(value) else float(value)


def scores(matrix: np.ndarray, class_names: tuple[str, ...], ignored: int = 0) -> Scores:
    """Derives every score from `matrix` [K, K] (rows: reference).

    Raises:
      ValueError: the shape of the matrix does not fit the class names.
    """
    m = np.asarray(matrix, np.float64)
    if m.shape != (len(class_names),) * 2:
        raise ValueError(f"confusion matrix of shape {m.shape} for {len(class_names)} classes")
    hit, reference, predicted, total = np.diag(m), m.sum(1), m.sum(0), m.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hit / (reference + predicted - hit)
        f1 = 2 * hit / (reference + predicted)
        precision, recall = hit / predicted, hit / reference
        accuracy = hit.sum() / total
        chance = (reference * predicted).sum() / total**2
        kappa = (accuracy - chance) / (1 - chance)
    present = reference + predicted > 0
    return Scores(
        class_names=tuple(class_names),
        iou=iou,
        f1=f1,
        precision=precision,
        recall=recall,
        mean_iou=float(iou[present].mean()) if present.any() else float("nan"),
        macro_f1=float(f1[present].mean()) if present.any() else float("nan"),
        accuracy=float(accuracy),
        kappa=float(kappa),
        pixels=int(total),
        ignored=int(ignored),
        absent=tuple(name for name, here in zip(class_names, present, strict=True) if not here),
        matrix=np.asarray(matrix, np.int64),
    )
