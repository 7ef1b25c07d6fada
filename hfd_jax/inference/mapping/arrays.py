"""Arrays in memory as a network reads them: checked, with invalid pixels marked."""

import numpy as np

from hfd_jax.core.errors import DataError
from hfd_jax.inference.mapping.reader import Advice, Wanted

ARRAY_ADVICE = Advice(
    linear="convert linear power with 10 * np.log10(power)",
    nodata="mark its pixels with valid=False or NaN",
    zeros="mark them with valid=False or NaN if they mean no data",
)


class ArrayImage:
    """An array as a network reads it, an `Image` of `mapping.reader`.

    Args:
      array: [H, W, bands], of `check_array`.
      valid: [H, W] bool.
      wanted: the network's input.
      name: of the array in messages.
    """

    advice = ARRAY_ADVICE

    def __init__(self, array: np.ndarray, valid: np.ndarray, wanted: Wanted, name: str = "array"):
        self.path, self.wanted, self.unit = name, wanted, wanted.unit
        self.shape, self.bands = array.shape[:2], range(array.shape[2])
        self.notes: list[str] = []
        self.strange = False
        self._array, self._valid = array, valid

    def values(self, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """As of `Image`."""
        part = slice(row, row + height), slice(col, col + width)
        dtype = np.float32 if self.wanted.sensor == "sar" else self.wanted.unit
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and thereby invalid
            image = self._array[part].astype(dtype)
        valid = self._valid[part].copy()
        if image.dtype.kind == "f":
            valid &= np.isfinite(image).all(-1)
        return image, valid


def check_array(array: np.ndarray, valid: np.ndarray | None, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """Checks shapes and types.

    Args:
      array: [H, W, bands] or [B, H, W, bands].
      valid: bool, of the array's shape without the bands; None if every pixel without NaN is valid.
      wanted: the network's input.

    Returns:
      (array, valid) with a batch axis: [B, H, W, bands] and [B, H, W] bool.

    Raises:
      DataError: names what was found and what was expected.
    """
    array, count = np.asarray(array), len(wanted.bands)
    expected = f"[H, W, {count}] or [B, H, W, {count}], with the bands {', '.join(wanted.bands)}"
    if array.ndim not in (3, 4):
        raise DataError(f"array has shape {array.shape}; expected {expected}")
    if array.shape[-1] != count:
        raise DataError(f"array has shape {array.shape}, so {array.shape[-1]} bands; expected {expected}")
    if not array.size:
        raise DataError(f"array has shape {array.shape} and holds no pixels")
    _check_type(array.dtype, wanted)
    if valid is None:
        valid = np.ones(array.shape[:-1], bool)
    valid = np.asarray(valid)
    if valid.dtype != bool or valid.shape != array.shape[:-1]:
        raise DataError(f"valid is {valid.dtype} of shape {valid.shape}; expected bool of shape {array.shape[:-1]}")
    return (array[None], valid[None]) if array.ndim == 3 else (array, valid)


def _check_type(found: np.dtype, wanted: Wanted) -> None:
    if found.kind not in "iuf":
        raise DataError(f"array is {found}; expected real numbers, in the unit {wanted.unit!r}")
    if wanted.sensor == "eo" and wanted.unit != "float32" and not np.can_cast(found, wanted.unit):
        raise DataError(f"array is {found}; {wanted.title} was trained on {wanted.unit}, which cannot hold its values")
