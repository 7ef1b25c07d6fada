"""Radar units: conversions between linear power and decibel, for NumPy and JAX arrays alike."""

import numpy as np

# -60 dB lies far below the noise floor of every sensor; it avoids log10(0).
FLOOR = 1e-6


def linear_to_db(power, xp=np):
    """10 log10 of linear power; values below FLOOR (-60 dB) become -60 dB."""
    return 10.0 * xp.log10(xp.maximum(power, FLOOR))


def db_to_linear(db, xp=np):
    """10^(db / 10)."""
    return xp.power(10.0, db / 10.0)
