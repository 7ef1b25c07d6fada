"""Label rasters as class indices: codes or colours -> index, and complaints that say what was found."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import rasterio

from hfd_jax.core.errors import DataError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data.described.description import TAG, Classes
from hfd_jax.data.rasters import data_bands, has_mask, is_complex, read_window, reading, scale_tags

TABLE_SPAN = 2**17  # codes that span more are searched instead of looked up
SHOWN = 12  # codes in a complaint


class LabelTable:
    """Turns the values of label rasters into class indices.

    Args:
      classes: of the description.
      source: path of the description, for messages.
    """

    def __init__(self, classes: Classes, source: str):
        self._classes, self._source = classes, source
        numbers = [(_number(code), index) for index, own in enumerate(classes.codes) for code in own]
        numbers += [(_number(code), IGNORE_LABEL) for code in classes.ignore]
        self._codes, self._index = map(np.array, zip(*sorted(numbers), strict=True))
        self._index = self._index.astype(np.uint8)
        low, high = int(self._codes[0]), int(self._codes[-1])
        self._low, self._high, self._table = low, high, None
        if high - low < TABLE_SPAN:
            self._table = np.full(high - low + 1, -1, np.int16)
            self._table[self._codes - low] = self._index

    def indices(self, codes: np.ndarray, valid: np.ndarray, path: str) -> np.ndarray:
        """[H, W] uint8 class indices, IGNORE_LABEL where not `valid`.

        Args:
          codes: [H, W] integers of any type, or floats without fractions.
          valid: [H, W] bool.
          path: for messages.

        Raises:
          DataError: a value is a fraction, or neither a class nor ignored.
        """
        if codes.dtype.kind == "f":
            fractions = valid & (codes != np.rint(codes))
            if fractions.any():
                raise DataError(
                    f"{path}: the value {codes[fractions][0]:g} is no code ({self._found(codes, valid)}); expected "
                    "integers: probabilities need a threshold, and resampling of labels must be nearest"
                )
            codes = np.where(valid, codes, 0).astype(np.int64)
        if self._table is not None:
            inside = (codes >= self._low) & (codes <= self._high)
            index = self._table[np.where(inside, codes, self._low).astype(np.int64) - self._low]
            index = np.where(inside, index, -1)
        else:
            place = np.searchsorted(self._codes, codes).clip(0, len(self._codes) - 1)
            index = np.where(self._codes[place] == codes, self._index[place].astype(np.int16), -1)
        if (valid & (index < 0)).any():
            unknown = codes[valid & (index < 0)]
            known = [self._shown(code) for code in self._codes[:40]]
            raise DataError(
                f"{path}: label code {self._shown(unknown[0])} is unknown; {self._source} lists [{', '.join(known)}]; "
                f"found: {self._found(codes, valid)}"
            )
        return np.where(valid, index, IGNORE_LABEL).astype(np.uint8)

    def _found(self, codes: np.ndarray, valid: np.ndarray) -> str:
        values, counts = np.unique(codes[valid], return_counts=True)
        most = np.argsort(-counts)[:SHOWN]
        listed = [f"{self._shown(values[k])} ({counts[k] / counts.sum():.1%})" for k in sorted(most)]
        return ", ".join(listed) + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")

    def _shown(self, code: Any) -> str:
        if self._classes.by_colour:
            return f"[{int(code) >> 16}, {int(code) >> 8 & 255}, {int(code) & 255}]"
        return f"{code:g}" if isinstance(code, np.floating) else str(code)


def read_label(raster, window, classes: Classes, table: LabelTable) -> np.ndarray:
    """[H, W] uint8 class indices of a window of an open label raster.

    Raises:
      DataError: it has several bands without a meaning, values that are no codes, or a nodata tag that is a class.
    """
    path = raster.name
    if classes.by_colour:
        codes, valid = _read_colours(raster, window)
    else:
        codes, valid = _read_codes(raster, window, classes.band_number)
        nodata = raster.nodata if classes.nodata == TAG else classes.nodata
        tagged = (codes == nodata) if nodata is not None else np.zeros(codes.shape, bool)
        names = [name for name, own in zip(classes.names, classes.codes, strict=True) if nodata in own]
        if names and classes.nodata == TAG and (tagged & valid).any():
            raise DataError(
                f"{path}: its nodata tag is {nodata:g}, which {tagged.mean():.1%} of its pixels have and which is the "
                f"code of class {names[0]!r}; expected 'nodata': null in label if they are of that class, or the code "
                "in label.ignore"
            )
        valid &= ~tagged
    return table.indices(codes, valid, path)


def _read_codes(raster, window, number: int) -> tuple[np.ndarray, np.ndarray]:
    bands = data_bands(raster)
    if number > raster.count:
        raise DataError(f"{raster.name}: {raster.count} bands; label.band_number is {number}")
    if not number and len(bands) > 1:
        kinds = ", ".join(sorted({raster.dtypes[k - 1] for k in bands}))
        raise DataError(
            f"{raster.name}: {len(bands)} bands of {kinds}; expected one band of class codes: a mask in colours needs "
            "label.by 'colour', and label.band_number chooses one of several bands"
        )
    number = number or 1
    if is_complex(raster.dtypes[number - 1]) or scale_tags(raster, [number]):
        raise DataError(f"{raster.name}: is complex or has a scale or offset tag; expected plain class codes")
    codes = read_window(raster, window, [number])[0]
    valid = np.isfinite(codes) if codes.dtype.kind == "f" else np.ones(codes.shape, bool)
    infinite = np.isinf(codes) if codes.dtype.kind == "f" else ~valid
    if infinite.any():
        raise DataError(f"{raster.name}: holds infinite values; expected integers, or NaN for no label")
    return codes, valid & _mask(raster, window, [number])


def _read_colours(raster, window) -> tuple[np.ndarray, np.ndarray]:
    """Colours as numbers 0xRRGGBB."""
    bands = data_bands(raster)
    if len(bands) == 1:
        try:
            palette = raster.colormap(1)
        except ValueError:
            palette = None
        if palette is None:
            raise DataError(f"{raster.name}: one band without colour table; label.by is 'colour', which needs RGB")
        table = np.zeros(256, np.int64)
        for entry, colour in palette.items():
            table[entry] = _number(colour[:3])
        return table[read_window(raster, window, bands)[0]], _mask(raster, window, bands)
    if len(bands) != 3 or any(raster.dtypes[k - 1] != "uint8" for k in bands):
        kinds = ", ".join(raster.dtypes)
        raise DataError(f"{raster.name}: bands of {kinds}; label.by is 'colour', which needs three of uint8")
    red, green, blue = read_window(raster, window, bands).astype(np.int64)
    return red << 16 | green << 8 | blue, _mask(raster, window, bands)


def _mask(raster, window, numbers: Sequence[int]) -> np.ndarray | bool:
    if not has_mask(raster, numbers):
        return True
    with reading(raster), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return raster.dataset_mask(window=window) > 0


def _number(code: int | Iterable[int]) -> int:
    """A code, or a colour as 0xRRGGBB."""
    if isinstance(code, int):
        return code
    red, green, blue = code
    return int(red) << 16 | int(green) << 8 | int(blue)
