"""Longitudes on the circle: 180 and -180 degrees are one meridian."""

import numpy as np


def is_within(longitude: float, start: float, stop: float) -> bool:
    """Whether a meridian lies in [start, stop), degrees; a range across the antimeridian is written [179, 181]."""
    return any(start <= longitude + turn < stop for turn in (-360, 0, 360))


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two ranges [start, stop), degrees, share a meridian."""
    return any(one[0] < other[1] + turn and other[0] + turn < one[1] for turn in (-360, 0, 360))


def unwrapped(longitudes: np.ndarray) -> np.ndarray:
    """Makes the corners of polygons [N, corners] continuous: none of them is torn apart at the antimeridian.

    If one of the polygons crosses the antimeridian, all are placed between 0 and 360 degrees.
    """
    first = longitudes[:, :1]
    whole = first + (longitudes - first + 180) % 360 - 180
    if not (np.abs(whole) > 180).any():
        return whole
    centres = whole.mean(1, keepdims=True)
    return whole + centres % 360 - centres
