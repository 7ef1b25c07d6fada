"""Simulated pairs of radar and optical tiles: a data set that needs no files.

A scene is drawn on a ground grid (a height map in metres and a class map), then seen twice:

* by an optical camera straight above, with colours, sun shadow and sensor noise;
* by a radar far to the LEFT of the image that looks along +x at a constant incidence angle. A point at
  ground position x and height h returns at the range of x - h / tan(incidence): buildings lean towards the radar
  (layover); what lies behind them within h * tan(incidence) stays dark (shadow); a wall and the ground in front of it
  form a corner that returns a bright line at the foot of the wall (double bounce).

Both images, the label and the height map share the ground grid. Every tile is a function of (options, index) alone.
Backscatter levels are round values typical of C to X band at 30 to 45 degrees; they are meant to be plausible, not
calibrated against any sensor.
"""

import dataclasses
import math

import numpy as np
from scipy import ndimage

from hfd_jax.core.options import option

GRASS, WATER, ROAD, TREES, BUILDINGS = range(5)
VERSION = 1  # of the simulator; increased when its tiles change
CLASS_NAMES = ("grass", "water", "road", "trees", "buildings")
CLASS_COLOURS = ((178, 204, 116), (52, 120, 190), (90, 90, 96), (38, 110, 60), (214, 84, 62))
SAR_BANDS = ("VV", "VH")
EO_BANDS = ("R", "G", "B", "NIR")

# sigma0 in dB of the bare surface, per class, for (VV, VH).
_SIGMA0_DB = np.array(
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

# Reflectance of each surface in (R, G, B, NIR).
_GRASS_COLOUR = np.array([0.20, 0.30, 0.14, 0.55], np.float32)
_SOIL_COLOUR = np.array([0.42, 0.34, 0.24, 0.46], np.float32)
_WATER_COLOUR = np.array([0.07, 0.12, 0.15, 0.03], np.float32)
_ROAD_COLOUR = np.array([0.30, 0.30, 0.31, 0.29], np.float32)
_TREE_COLOUR = np.array([0.09, 0.18, 0.08, 0.46], np.float32)
_ROOF_COLOURS = np.array(
    [
        [0.56, 0.26, 0.18, 0.40],  # red tiles
        [0.44, 0.33, 0.27, 0.38],  # weathered tiles
        [0.66, 0.65, 0.63, 0.60],  # gravel
        [0.88, 0.88, 0.87, 0.80],  # white membrane
        [0.20, 0.20, 0.23, 0.19],  # bitumen
        [0.33, 0.42, 0.50, 0.36],  # blue metal
        [0.36, 0.46, 0.40, 0.36],  # copper green
    ],
    np.float32,
)

_TALLEST_M = 24.0
_SUBSAMPLES = 3  # ground samples per pixel along range; layover needs finer steps than the pixel
_WALL_STEPS = 10  # points up a wall


@dataclasses.dataclass(frozen=True)
class SceneOptions:
    """Options of a simulated data set.

    Attributes:
      size: edge of a square tile, pixels.
      pixel_size: edge of a pixel on the ground, metres.
      looks: number of looks; speckle is Gamma distributed with this shape and mean 1.
      incidence: angle between the look direction and the vertical, degrees, 15 to 75.
      misregistration: length of the optical image's shift in a random direction, pixels.
      unlabelled_share: share of the training pairs without label.
      seed: changes every tile.
    """

    size: int = option(64, "edge of a square tile, pixels")
    pixel_size: float = option(1.0, "edge of a pixel on the ground, metres")
    looks: float = option(1.0, "number of looks of the speckle")
    incidence: float = option(38.0, "incidence angle of the radar, degrees from the vertical")
    misregistration: float = option(0.0, "length of the shift between SAR and optical image, pixels")
    unlabelled_share: float = option(0.0, "share of the training tiles without label")
    seed: int = option(0, "random seed of all tiles")

    def __post_init__(self):
        checks = {
            "size": (self.size >= 32, "at least 32 pixels"),
            "pixel_size": (self.pixel_size > 0, "a length in metres above 0"),
            "looks": (self.looks > 0, "above 0"),
            "incidence": (15 <= self.incidence <= 75, "15 to 75 degrees"),
            "misregistration": (0 <= self.misregistration <= 16, "0 to 16 pixels"),
            "seed": (self.seed >= 0, "0 or more"),
            "unlabelled_share": (0 <= self.unlabelled_share < 1, "at least 0, below 1"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise ValueError(f"scenes.{name} is {getattr(self, name)}; expected {expected}")


@dataclasses.dataclass(frozen=True)
class Scene:
    """One simulated pair: sar [H, W, 2] float32 dB, eo [H, W, 4] uint8, label [H, W] uint8, height [H, W] float32 m."""

    sar: np.ndarray
    eo: np.ndarray
    label: np.ndarray
    height: np.ndarray


@dataclasses.dataclass
class _Ground:
    """The scene before any sensor sees it, on the padded grid [N, N]."""

    pixel_size: float
    classes: np.ndarray
    height: np.ndarray
    roof: np.ndarray  # index into _ROOF_COLOURS
    roof_db: np.ndarray  # deviation of a roof's backscatter, dB
    soil: np.ndarray  # 0 meadow .. 1 bare soil
    texture: np.ndarray  # smooth field, mean 0, std 1


def simulate(index: int, options: SceneOptions) -> Scene:
    """Returns tile `index`; equal arguments give equal bytes."""
    rng = np.random.default_rng([options.seed, index])
    # Everything that can lean or cast a shadow into the tile must stand on the padded ground.
    reach = _TALLEST_M * max(
        1 / math.tan(math.radians(options.incidence)), math.tan(math.radians(options.incidence)), 1.8
    )
    margin = math.ceil(reach / options.pixel_size) + 2
    ground = _lay_out(rng, options.size + 2 * margin, options.pixel_size)
    sar = _radar_image(rng, ground, options)
    eo = _optical_image(rng, ground, options.misregistration)
    inner = slice(margin, margin + options.size)
    return Scene(
        sar=np.ascontiguousarray(sar[inner, inner]),
        eo=np.ascontiguousarray(eo[inner, inner]),
        label=np.ascontiguousarray(ground.classes[inner, inner]),
        height=np.ascontiguousarray(ground.height[inner, inner]),
    )


# ---------------------------------------------------------------------------------------------------------- ground


def _smooth_noise(rng: np.random.Generator, n: int, scale: float) -> np.ndarray:
    """A Gaussian random field [n, n] of correlation length `scale` pixels, mean 0 and standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
    spectrum = np.fft.rfft2(rng.standard_normal((n, n))) * np.exp(-2 * (np.pi * frequency * scale / 2) ** 2)
    field = np.fft.irfft2(spectrum, s=(n, n))
    return ((field - field.mean()) / (field.std() + 1e-9)).astype(np.float32)


def _lay_out(rng: np.random.Generator, n: int, pixel_size: float) -> _Ground:
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) * pixel_size
    metres = n * pixel_size
    classes = np.full((n, n), GRASS, np.uint8)
    ground = _Ground(
        pixel_size=pixel_size,
        classes=classes,
        height=np.zeros((n, n), np.float32),
        roof=np.zeros((n, n), np.uint8),
        roof_db=np.zeros((n, n), np.float32),
        soil=1 / (1 + np.exp(-4 * (_smooth_noise(rng, n, 30 / pixel_size) - 0.6))),
        texture=_smooth_noise(rng, n, 3 / pixel_size),
    )
    angle = rng.uniform(0, np.pi / 2)  # of the street grid against the image
    u = x * math.cos(angle) + y * math.sin(angle)
    v = -x * math.sin(angle) + y * math.cos(angle)
    _draw_water(rng, ground, u, v, metres)
    _draw_roads(rng, ground, u, v)
    _draw_buildings(rng, ground, angle)
    _draw_trees(rng, ground)
    return ground


def _draw_water(rng, ground, u, v, metres):
    n = len(ground.classes)
    kind = rng.random()
    if kind < 0.35:  # a river: a band around a wavy line, not aligned with the streets
        turn = rng.uniform(0, np.pi)
        along = u * math.cos(turn) + v * math.sin(turn)
        across = -u * math.sin(turn) + v * math.cos(turn)
        across = across - np.median(across) + rng.uniform(-0.25, 0.25) * metres
        wave = rng.uniform(4, 14) * np.sin(along * 2 * np.pi / rng.uniform(90, 200) + rng.uniform(0, 6.28))
        ground.classes[np.abs(across - wave) < rng.uniform(6, 16)] = WATER
    elif kind < 0.6:  # ponds
        ground.classes[_smooth_noise(rng, n, 35 / ground.pixel_size) > rng.uniform(0.9, 1.4)] = WATER


def _draw_roads(rng, ground, u, v):
    for axis, keep in ((u, 0.9), (v, 0.6)):
        position = axis.min() + rng.uniform(0, 50)
        while position < axis.max():
            if rng.random() < keep:
                ground.classes[np.abs(axis - position) < rng.uniform(2.5, 4.5)] = ROAD
            position += rng.uniform(38, 75)


def _draw_buildings(rng, ground, angle):
    n, pixel = len(ground.classes), ground.pixel_size
    town = _smooth_noise(rng, n, 50 / pixel) + rng.uniform(-0.4, 1.0)
    occupied = ground.classes != GRASS
    pitch = rng.uniform(15, 22)
    centres = np.arange(pitch / 2, n * pixel * 1.5, pitch)
    cos, sin = math.cos(angle), math.sin(angle)
    centre_of_grid = n * pixel / 2
    for a in centres - n * pixel * 0.75:
        for b in centres - n * pixel * 0.75:
            along, across = rng.uniform(3.5, pitch / 2 - 0.5, 2)
            shift, tall, style = rng.uniform(-1.5, 1.5, 2), rng.random(), rng.random(3)
            roof, deviation = rng.integers(len(_ROOF_COLOURS)), rng.normal(0, 3.0)
            a0, b0 = a + shift[0], b + shift[1]
            cx = centre_of_grid + a0 * cos - b0 * sin
            cy = centre_of_grid + a0 * sin + b0 * cos
            reach = math.hypot(along, across) + pixel
            rows = slice(max(int((cy - reach) / pixel), 0), int((cy + reach) / pixel) + 2)
            cols = slice(max(int((cx - reach) / pixel), 0), int((cx + reach) / pixel) + 2)
            if rows.start >= n or cols.start >= n or cx < -reach or cy < -reach:
                continue
            row, col = min(max(int(cy / pixel), 0), n - 1), min(max(int(cx / pixel), 0), n - 1)
            if town[row, col] < 0.1 or style[0] < 0.15:
                continue
            yy, xx = np.mgrid[rows, cols][:, : n - rows.start, : n - cols.start] * pixel
            du = (xx - cx) * cos + (yy - cy) * sin
            dv = -(xx - cx) * sin + (yy - cy) * cos
            inside = (np.abs(du) <= along) & (np.abs(dv) <= across)
            if not inside.any() or (occupied[rows, cols] & inside).any():
                continue
            eaves = rng.uniform(12, _TALLEST_M - 4) if tall < 0.12 else rng.uniform(3.5, 9)
            # Low buildings mostly have a gabled roof; its ridge runs along u.
            gable = (1 - np.abs(dv) / across) * 0.7 * across if tall >= 0.12 and style[1] < 0.6 else 0.0
            ground.height[rows, cols][inside] = (eaves + np.zeros_like(du) + gable)[inside]
            ground.classes[rows, cols][inside] = BUILDINGS
            ground.roof[rows, cols][inside] = roof
            ground.roof_db[rows, cols][inside] = deviation
            occupied[rows, cols] |= inside


def _draw_trees(rng, ground):
    n, pixel = len(ground.classes), ground.pixel_size
    forest = _smooth_noise(rng, n, 40 / pixel) + rng.uniform(-0.8, 0.5)
    candidates = int((n * pixel) ** 2 / 40)
    position = rng.uniform(0, n, (candidates, 2))
    shape = rng.uniform([2.0, 4.0], [4.5, 13.0], (candidates, 2))
    chance = rng.random(candidates)
    for (cy, cx), (radius, tall), luck in zip(position, shape, chance, strict=True):
        row, col = int(cy), int(cx)
        if luck > (0.95 if forest[row, col] > 0.7 else 0.05) or ground.classes[row, col] in (WATER, ROAD, BUILDINGS):
            continue
        reach = int(radius / pixel) + 1
        rows, cols = slice(max(row - reach, 0), row + reach + 1), slice(max(col - reach, 0), col + reach + 1)
        yy, xx = np.mgrid[rows, cols][:, : n - rows.start, : n - cols.start]
        squared = ((yy - cy) ** 2 + (xx - cx) ** 2) * (pixel / radius) ** 2
        crown = (squared < 1) & (ground.classes[rows, cols] != BUILDINGS)
        top = tall * (1 - 0.6 * squared)
        crown &= top > ground.height[rows, cols]
        ground.height[rows, cols][crown] = top[crown]
        ground.classes[rows, cols][crown] = TREES


# ------------------------------------------------------------------------------------------------------------ radar


def _radar_image(rng: np.random.Generator, ground: _Ground, options: SceneOptions) -> np.ndarray:
    """Side-looking image [N, N, 2] in dB; the radar is on the left, range grows with x."""
    cot = 1 / math.tan(math.radians(options.incidence))
    power = _trace_rows(ground, cot, _surface_power(rng, ground))
    power = ndimage.gaussian_filter(power, (0.5, 0.5, 0)) + 10 ** (_NOISE_FLOOR_DB / 10)
    speckle = rng.standard_gamma(options.looks, power.shape) / options.looks
    # A draw of zero would give minus infinity; real products are quantised far above this value.
    return (10 * np.log10(np.maximum(power * speckle, 1e-6))).astype(np.float32)


def _surface_power(rng: np.random.Generator, ground: _Ground) -> np.ndarray:
    """Backscatter of each surface before geometry, linear sigma0 [N, N, 2]."""
    db = _SIGMA0_DB[ground.classes] + rng.normal(0, 0.7, 2).astype(np.float32)
    spread = np.array([1.0, 1.2, 0.6, 1.3, 0.8], np.float32)[ground.classes]
    db += (spread * ground.texture + ground.roof_db)[..., None]
    # Bare soil is smoother than meadow; wind roughens a whole water surface by some dB.
    db -= ((ground.classes == GRASS) * 3.0 * ground.soil)[..., None]
    db[ground.classes == WATER] += np.float32(rng.uniform(-1.5, 3.0))
    return (10 ** (db / 10)).astype(np.float32)


def _trace_rows(ground: _Ground, cot: float, surface: np.ndarray) -> np.ndarray:
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


def _squareness(ground: _Ground) -> np.ndarray:
    """|cosine| of the angle between a building's outward normal and the look direction [N, N]."""
    smooth = ndimage.gaussian_filter((ground.classes == BUILDINGS).astype(np.float32), 1.5)
    dy, dx = ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1)
    return np.abs(dx) / (np.hypot(dx, dy) + 1e-6)


# ---------------------------------------------------------------------------------------------------------- optical


def _optical_image(rng: np.random.Generator, ground: _Ground, misregistration: float) -> np.ndarray:
    """Nadir image [N, N, 4] uint8 with sun shadow, shading, texture and sensor noise."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), math.radians(rng.uniform(32, 60))
    light = _shading(ground, azimuth, elevation) * np.where(_sun_shadow(ground, azimuth, elevation), 0.0, 1.0)
    light = ndimage.gaussian_filter(0.35 + 0.65 * light, 0.5)
    colour = _surface_colour(rng, ground) * light[..., None]
    colour = ndimage.gaussian_filter(colour, (0.6, 0.6, 0)) * rng.uniform(0.85, 1.15)
    turn = rng.uniform(0, 2 * np.pi)
    if misregistration:
        colour = ndimage.shift(
            colour, (misregistration * math.sin(turn), misregistration * math.cos(turn), 0), order=1, mode="nearest"
        )
    noisy = colour + rng.normal(0, 0.012, colour.shape)
    return np.clip(np.rint(1 + noisy * 254), 1, 255).astype(np.uint8)  # 0 is left for nodata


def _surface_colour(rng, ground):
    fine = rng.normal(0, 1, ground.classes.shape).astype(np.float32)
    palette = np.stack([_GRASS_COLOUR, _WATER_COLOUR, _ROAD_COLOUR, _TREE_COLOUR, _GRASS_COLOUR])
    colour = palette[ground.classes]
    meadow = ground.classes == GRASS
    colour[meadow] += (ground.soil[meadow, None] * (_SOIL_COLOUR - _GRASS_COLOUR)).astype(np.float32)
    roofs = ground.classes == BUILDINGS
    colour[roofs] = _ROOF_COLOURS[ground.roof[roofs]]
    coarse = np.array([0.10, 0.05, 0.05, 0.12, 0.02], np.float32)[ground.classes]
    grain = np.array([0.06, 0.02, 0.04, 0.12, 0.04], np.float32)[ground.classes]
    return colour * (1 + coarse * ground.texture + grain * fine)[..., None]


def _shading(ground, azimuth, elevation):
    """Cosine of the sun's angle to the surface, 1 for flat ground; walls are not seen from above."""
    dy, dx = np.gradient(ground.height, ground.pixel_size)
    dy, dx = np.clip(dy, -1.2, 1.2), np.clip(dx, -1.2, 1.2)
    sun = -dx * math.cos(azimuth) - dy * math.sin(azimuth)
    return np.clip((sun / math.tan(elevation) + 1) / np.sqrt(1 + dx**2 + dy**2), 0.1, 1.6)


def _sun_shadow(ground, azimuth, elevation):
    """True where something towards the sun is higher than the ray to the sun."""
    shadow = np.zeros(ground.height.shape, bool)
    slope = math.tan(elevation)
    n = len(shadow)
    for step in range(1, int(_TALLEST_M / slope / ground.pixel_size) + 1):
        dy, dx = round(step * math.sin(azimuth)), round(step * math.cos(azimuth))
        shaded = (slice(max(-dy, 0), n - max(dy, 0)), slice(max(-dx, 0), n - max(dx, 0)))
        shading = (slice(max(dy, 0), n + min(dy, 0)), slice(max(dx, 0), n + min(dx, 0)))
        shadow[shaded] |= ground.height[shading] > ground.height[shaded] + step * slope * ground.pixel_size
    return shadow
