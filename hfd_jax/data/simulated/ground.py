"""The ground of a simulated scene: what stands where, and how high, before any sensor sees it."""

import dataclasses
import math

import numpy as np
from scipy import spatial

from hfd_jax.data.simulated.region import Region

GRASS, WATER, ROAD, TREES, BUILDINGS = range(5)
TALLEST_M = 24.0
ROOFS = 7  # kinds of roofs


@dataclasses.dataclass
class Ground:
    """The scene before any sensor sees it, on the padded grid [N, N]."""

    pixel_size: float
    classes: np.ndarray
    height: np.ndarray
    roof: np.ndarray  # kind of roof, 0 to ROOFS - 1
    roof_db: np.ndarray  # deviation of a roof's backscatter, dB
    soil: np.ndarray  # 0 meadow .. 1 bare soil
    texture: np.ndarray  # smooth field, mean 0, std 1
    terrain: np.ndarray  # smooth field of larger scale, mean 0, std 1
    parcels: np.ndarray  # number of the parcel of land that a pixel lies in, from 0

    def slope(self, azimuth: float) -> np.ndarray:
        """Slope of the terrain [N, N] in the direction `azimuth` (radians from +x to +y), mean about 0, scale 1."""
        dy, dx = np.gradient(self.terrain)
        along = dx * math.cos(azimuth) + dy * math.sin(azimuth)
        return along / (along.std() + 1e-9)


def smooth_noise(rng: np.random.Generator, n: int, scale: float) -> np.ndarray:
    """A Gaussian random field [n, n] of correlation length `scale` pixels, mean 0 and standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
    spectrum = np.fft.rfft2(rng.standard_normal((n, n))) * np.exp(-2 * (np.pi * frequency * scale / 2) ** 2)
    field = np.fft.irfft2(spectrum, s=(n, n))
    return ((field - field.mean()) / (field.std() + 1e-9)).astype(np.float32)


def lay_out(
    rng: np.random.Generator, other: np.random.Generator | None, n: int, pixel_size: float, region: Region
) -> Ground:
    """Draws a ground of n x n pixels.

    Args:
      rng: draws what every world has.
      other: draws terrain and parcels; None: flat land in one parcel.
      n: edge, pixels.
      pixel_size: edge of a pixel, metres.
      region: decides how much of what there is.
    """
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) * pixel_size
    metres = n * pixel_size
    classes = np.full((n, n), GRASS, np.uint8)
    ground = Ground(
        pixel_size=pixel_size,
        classes=classes,
        height=np.zeros((n, n), np.float32),
        roof=np.zeros((n, n), np.uint8),
        roof_db=np.zeros((n, n), np.float32),
        soil=1 / (1 + np.exp(-4 * (smooth_noise(rng, n, 30 / pixel_size) - 0.6 + region.soil))),
        texture=smooth_noise(rng, n, 3 / pixel_size),
        terrain=smooth_noise(other, n, 40 / pixel_size) if other else np.zeros((n, n), np.float32),
        parcels=_draw_parcels(other, n, pixel_size) if other else np.zeros((n, n), np.int64),
    )
    angle = rng.uniform(0, np.pi / 2)  # of the street grid against the image
    u = x * math.cos(angle) + y * math.sin(angle)
    v = -x * math.sin(angle) + y * math.cos(angle)
    _draw_water(rng, ground, u, v, metres, region.water)
    _draw_roads(rng, ground, u, v, region.streets)
    _draw_buildings(rng, ground, angle, region.town)
    _draw_trees(rng, ground, region.forest)
    return ground


def _draw_parcels(rng, n, pixel_size):
    """Voronoi cells of a jittered grid, some 25 m wide."""
    centres = np.mgrid[0 : n * pixel_size : 25, 0 : n * pixel_size : 25].reshape(2, -1).T
    centres = centres + rng.uniform(-10, 10, centres.shape)
    pixels = (np.mgrid[0:n, 0:n].reshape(2, -1).T + 0.5) * pixel_size
    return spatial.cKDTree(centres).query(pixels)[1].reshape(n, n)


def _draw_water(rng, ground, u, v, metres, more):
    n = len(ground.classes)
    kind = rng.random() - 0.4 * more
    if kind < 0.35:  # a river: a band around a wavy line, not aligned with the streets
        turn = rng.uniform(0, np.pi)
        along = u * math.cos(turn) + v * math.sin(turn)
        across = -u * math.sin(turn) + v * math.cos(turn)
        across = across - np.median(across) + rng.uniform(-0.25, 0.25) * metres
        wave = rng.uniform(4, 14) * np.sin(along * 2 * np.pi / rng.uniform(90, 200) + rng.uniform(0, 6.28))
        ground.classes[np.abs(across - wave) < rng.uniform(6, 16)] = WATER
    elif kind < 0.6:  # ponds
        ground.classes[smooth_noise(rng, n, 35 / ground.pixel_size) > rng.uniform(0.9, 1.4) - more] = WATER


def _draw_roads(rng, ground, u, v, spacing):
    for axis, keep in ((u, 0.9), (v, 0.6)):
        position = axis.min() + rng.uniform(0, 50)
        while position < axis.max():
            if rng.random() < keep:
                ground.classes[np.abs(axis - position) < rng.uniform(2.5, 4.5)] = ROAD
            position += spacing * rng.uniform(38, 75)


def _draw_buildings(rng, ground, angle, more):
    n, pixel = len(ground.classes), ground.pixel_size
    town = smooth_noise(rng, n, 50 / pixel) + rng.uniform(-0.4, 1.0) + more
    occupied = ground.classes != GRASS
    pitch = rng.uniform(15, 22)
    centres = np.arange(pitch / 2, n * pixel * 1.5, pitch)
    cos, sin = math.cos(angle), math.sin(angle)
    centre_of_grid = n * pixel / 2
    for a in centres - n * pixel * 0.75:
        for b in centres - n * pixel * 0.75:
            along, across = rng.uniform(3.5, pitch / 2 - 0.5, 2)
            shift, tall, style = rng.uniform(-1.5, 1.5, 2), rng.random(), rng.random(3)
            roof, deviation = rng.integers(ROOFS), rng.normal(0, 3.0)
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
            eaves = rng.uniform(12, TALLEST_M - 4) if tall < 0.12 else rng.uniform(3.5, 9)
            # Low buildings mostly have a gabled roof; its ridge runs along u.
            gable = (1 - np.abs(dv) / across) * 0.7 * across if tall >= 0.12 and style[1] < 0.6 else 0.0
            ground.height[rows, cols][inside] = (eaves + np.zeros_like(du) + gable)[inside]
            ground.classes[rows, cols][inside] = BUILDINGS
            ground.roof[rows, cols][inside] = roof
            ground.roof_db[rows, cols][inside] = deviation
            occupied[rows, cols] |= inside


def _draw_trees(rng, ground, more):
    n, pixel = len(ground.classes), ground.pixel_size
    forest = smooth_noise(rng, n, 40 / pixel) + rng.uniform(-0.8, 0.5) + more
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
