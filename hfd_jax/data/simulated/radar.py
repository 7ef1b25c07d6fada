"""A side-looking radar image of the ground."""

import math

import numpy as np
from scipy import ndimage

from hfd_jax.data.simulated.ground import BUILDINGS, GRASS, WATER, Ground
from hfd_jax.data.simulated.region import Region

# sigma0 in dB of the bare surface, per class, for (VV, VH).
SIGMA0_DB = np.array(
    [
        [-11.5, -18.5],  # grass and fields: rough at the wavelength, little volume
        [-21.5, -31.0],  # water: specular, away from the radar
        [-17.5, -26.5],  # asphalt: nearly as dark as water
        [-8.5, -13.5],  # crowns: volume scattering, strong in VH
        [-11.0, -19.5],  # roofs
    ],
    np.float32,
)
_WALL_DB = np.array([-6.0, -14.0], np.float32)
_CORNER_DB = np.array([9.0, -1.0], np.float32)  # a wall of 8 m, square to the look direction
_NOISE_FLOOR_DB = np.array([-24.0, -29.0], np.float32)
_SLOPE_DB = 2.0  # of a slope of one standard deviation in the hilliest region
_SUBSAMPLES = 3  # ground samples per pixel along range; layover needs finer steps than the pixel
_WALL_STEPS = 10  # points up a wall


def radar_image(
    rng: np.random.Generator, ground: Ground, incidence: float, looks: float, region: Region, unseen_db: np.ndarray
) -> np.ndarray:
    """Returns a side-looking image [N, N, 2] in dB; the radar is on the left, range grows with x.

    Args:
      rng: draws backscatter and speckle.
      ground: what the radar sees.
      incidence: incidence angle, degrees.
      looks: number of looks of the speckle.
      region: deviations of backscatter and calibration.
      unseen_db: deviation of each parcel of grass, dB [parcels, 1], which no optical image shows.
    """
    cot = 1 / math.tan(math.radians(incidence))
    power = trace_rows(ground, cot, _surface_power(rng, ground, region, unseen_db))
    power = ndimage.gaussian_filter(power, (0.5, 0.5, 0)) + 10 ** (_NOISE_FLOOR_DB / 10)
    power *= 10 ** (region.calibration / 10)
    speckle = rng.standard_gamma(looks, power.shape) / looks
    # A draw of zero would give minus infinity; real products are quantised far above this value.
    return (10 * np.log10(np.maximum(power * speckle, 1e-6))).astype(np.float32)


def _surface_power(rng, ground: Ground, region: Region, unseen_db: np.ndarray) -> np.ndarray:
    """Backscatter of each surface before geometry, linear sigma0 [N, N, 2]."""
    db = SIGMA0_DB[ground.classes] + rng.normal(0, 0.7, 2).astype(np.float32)
    spread = np.array([1.0, 1.2, 0.6, 1.3, 0.8], np.float32)[ground.classes]
    db += (spread * ground.texture + ground.roof_db)[..., None]
    # Bare soil is smoother than meadow; wind roughens a whole water surface by some dB.
    db -= ((ground.classes == GRASS) * 3.0 * ground.soil)[..., None]
    db[ground.classes == WATER] += np.float32(rng.uniform(-1.5, 3.0))
    db += region.backscatter[ground.classes]
    meadow = ground.classes == GRASS
    db[meadow] += unseen_db[ground.parcels[meadow]]
    # Slopes towards the radar are brighter, except on water.
    db -= (_SLOPE_DB * region.relief * (ground.classes != WATER) * ground.slope(0.0))[..., None].astype(np.float32)
    return (10 ** (db / 10)).astype(np.float32)


def trace_rows(ground: Ground, cot: float, surface: np.ndarray) -> np.ndarray:
    """Deposits every lit facet at its slant range, expressed in ground range. Returns linear power [N, N, 2].

    A ray that grazes (x, z) satisfies z + x * cot = const: a point is lit when no point nearer to the radar has a
    larger value. Vertical facets are sampled along their height, so that a wall spreads over its whole layover.
    """
    n, s, pixel = len(ground.height), _SUBSAMPLES, ground.pixel_size
    sin = 1 / math.hypot(1, cot)
    z = np.repeat(ground.height, s, axis=1)
    x = (np.arange(n * s, dtype=np.float32) + 0.5) * (pixel / s)
    level = z + x * cot
    horizon = np.maximum.accumulate(level, axis=1)
    lit = level >= horizon - 1e-3
    image = np.zeros((n * n, 2))

    row, col = np.nonzero(lit)
    _deposit(image, n, row, (x[col] - z[row, col] * cot) / pixel, surface[row, col // s] / s)

    rise = np.diff(z, axis=1)
    row, col = np.nonzero(rise > 0.05)  # steps that face the radar, between samples col and col + 1
    tall, target = rise[row, col], (col + 1) // s
    building = ground.classes[row, target] == BUILDINGS
    square = _squareness(ground)[row, target]
    wall = np.where(building[:, None], 10 ** (_WALL_DB / 10) * (0.3 + 0.7 * square[:, None]), surface[row, target])
    for step in (np.arange(_WALL_STEPS) + 0.5) / _WALL_STEPS:
        height = z[row, col] + step * tall
        seen = height + x[col] * cot >= horizon[row, col] - 1e-3
        facet = (wall * (tall * sin / (_WALL_STEPS * pixel))[:, None])[seen]
        _deposit(image, n, row[seen], (x[col] - height * cot)[seen] / pixel, facet)

    corner = building & (tall > 2) & lit[row, col]
    strength = tall[corner] / 8 * (0.05 + 0.95 * square[corner] ** 8)
    foot = (x[col[corner]] - z[row[corner], col[corner]] * cot) / pixel
    _deposit(image, n, row[corner], foot, strength[:, None] * 10 ** (_CORNER_DB / 10))
    return image.reshape(n, n, 2).astype(np.float32)


def _deposit(image, n, row, position, power):
    """Adds `power` [P, 2] to `image` [n * n, 2] at fractional columns `position`, shared between the two nearest."""
    left = np.floor(position - 0.5).astype(np.int64)
    weight = position - 0.5 - left
    for column, share in ((left, 1 - weight), (left + 1, weight)):
        inside = (column >= 0) & (column < n)
        flat = row[inside] * n + column[inside]
        for band in range(2):
            image[:, band] += np.bincount(flat, (power[:, band] * share)[inside], n * n)


def _squareness(ground: Ground) -> np.ndarray:
    """|cosine| of the angle between a building's outward normal and the look direction [N, N]."""
    smooth = ndimage.gaussian_filter((ground.classes == BUILDINGS).astype(np.float32), 1.5)
    dy, dx = ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1)
    return np.abs(dx) / (np.hypot(dx, dy) + 1e-6)
