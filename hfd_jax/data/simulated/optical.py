"""An optical image of the ground, seen from straight above."""

import math

import numpy as np
from scipy import ndimage

from hfd_jax.data.simulated.appearance import Appearance
from hfd_jax.data.simulated.ground import BUILDINGS, GRASS, TALLEST_M, Ground
from hfd_jax.data.simulated.region import Region

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


def optical_image(
    rng: np.random.Generator, ground: Ground, misregistration: float, region: Region, appearance: Appearance | None
) -> np.ndarray:
    """Returns a nadir image [N, N, 4] uint8 with sun shadow, shading, texture and sensor noise.

    Args:
      rng: draws sun, texture and noise.
      ground: what the camera sees.
      misregistration: length of a shift in a random direction, pixels.
      region: relief and season.
      appearance: what the radar does not see; None: a clear day, and no crops.
    """
    azimuth, elevation = rng.uniform(0, 2 * np.pi), math.radians(rng.uniform(32, 60))
    light = _shading(ground, azimuth, elevation) * np.where(_sun_shadow(ground, azimuth, elevation), 0.0, 1.0)
    light = ndimage.gaussian_filter(0.35 + 0.65 * light, 0.5)
    light *= np.clip(1 - 0.2 * region.relief * ground.slope(azimuth), 0.4, 1.6)
    colour = _surface_colour(rng, ground, region, appearance) * light[..., None]
    colour = ndimage.gaussian_filter(colour, (0.6, 0.6, 0)) * rng.uniform(0.85, 1.15)
    turn = rng.uniform(0, 2 * np.pi)
    if misregistration:
        colour = ndimage.shift(
            colour, (misregistration * math.sin(turn), misregistration * math.cos(turn), 0), order=1, mode="nearest"
        )
    if appearance is not None:
        colour = appearance.seen_through_air(colour)
    noisy = colour + rng.normal(0, 0.012, colour.shape)
    return np.clip(np.rint(1 + noisy * 254), 1, 255).astype(np.uint8)  # 0 is left for nodata


def _surface_colour(rng, ground, region, appearance):
    fine = rng.normal(0, 1, ground.classes.shape).astype(np.float32)
    palette = np.stack([_GRASS_COLOUR, _WATER_COLOUR, _ROAD_COLOUR, _TREE_COLOUR, _GRASS_COLOUR])
    colour = palette[ground.classes]
    meadow = ground.classes == GRASS
    colour[meadow] += (ground.soil[meadow, None] * (_SOIL_COLOUR - _GRASS_COLOUR)).astype(np.float32)
    roofs = ground.classes == BUILDINGS
    colour[roofs] = _ROOF_COLOURS[ground.roof[roofs]]
    colour *= region.season[ground.classes]
    if appearance is not None:
        colour[meadow] *= appearance.crops[ground.parcels[meadow]]
    coarse = np.array([0.10, 0.05, 0.05, 0.12, 0.02], np.float32)[ground.classes]
    grain = np.array([0.06, 0.02, 0.04, 0.12, 0.04], np.float32)[ground.classes]
    pattern = 1 + coarse * ground.texture + grain * fine
    return colour * (pattern if appearance is None else pattern + appearance.rows * meadow)[..., None]


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
    for step in range(1, int(TALLEST_M / slope / ground.pixel_size) + 1):
        dy, dx = round(step * math.sin(azimuth)), round(step * math.cos(azimuth))
        shaded = (slice(max(-dy, 0), n - max(dy, 0)), slice(max(-dx, 0), n - max(dx, 0)))
        shading = (slice(max(dy, 0), n + min(dy, 0)), slice(max(dx, 0), n + min(dx, 0)))
        shadow[shaded] |= ground.height[shading] > ground.height[shaded] + step * slope * ground.pixel_size
    return shadow
