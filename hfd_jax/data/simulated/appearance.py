"""What an optical image shows besides the classes, and a radar image does not: crops, light, haze and clouds."""

import dataclasses
import math

import numpy as np

from hfd_jax.data.simulated.ground import Ground, smooth_noise

_CLOUD_COLOUR = np.array([0.92, 0.93, 0.95, 0.90], np.float32)
_HAZE_COLOUR = np.array([0.62, 0.66, 0.70, 0.50], np.float32)


@dataclasses.dataclass(frozen=True)
class Appearance:
    """Optical nuisances of one scene on the padded grid [N, N].

    Attributes:
      crops: factor of each parcel's reflectance [parcels, 4].
      rows: relative brightness of ploughed rows [N, N].
      light: factor of the illumination [N, N].
      haze: share of light from the air [N, N], 0 to 1.
      cloud: opacity of clouds [N, N], 0 to 1.
      cloud_shadow: share of the light that clouds take [N, N], 0 to 1.
    """

    crops: np.ndarray
    rows: np.ndarray
    light: np.ndarray
    haze: np.ndarray
    cloud: np.ndarray
    cloud_shadow: np.ndarray

    @property
    def clear(self) -> np.ndarray:
        """What a cloud mask lets pass [N, N] bool: thin clouds, haze and cloud shadows are not in it."""
        return self.cloud < 0.5

    def seen_through_air(self, colour: np.ndarray) -> np.ndarray:
        """The reflectance [N, N, 4] under this light, haze and these clouds."""
        colour = colour * (self.light * (1 - 0.6 * self.cloud_shadow))[..., None]
        colour = colour + self.haze[..., None] * (_HAZE_COLOUR - colour)
        return colour + self.cloud[..., None] * (_CLOUD_COLOUR - colour)


def draw_appearance(rng: np.random.Generator, ground: Ground, strength: float, clouds: float) -> Appearance:
    """Draws the nuisances of a scene.

    Args:
      rng: random generator.
      ground: the scene.
      strength: 0 (none) to 1 (marked).
      clouds: share of the pixels under clouds, on average over scenes; 0 to 1.
    """
    n, parcels = len(ground.classes), ground.parcels.max() + 1
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) * ground.pixel_size
    turn = rng.uniform(0, np.pi, parcels)[ground.parcels]
    spacing = rng.uniform(4, 9, parcels)[ground.parcels]
    ploughed = (rng.random(parcels) < 0.5)[ground.parcels]
    rows = ploughed * np.sin(2 * np.pi / spacing * (x * np.cos(turn) + y * np.sin(turn)))
    tint = np.exp(rng.normal(0, 0.1 * strength, 4))
    azimuth = rng.uniform(0, 2 * np.pi)
    ramp = (x * math.cos(azimuth) + y * math.sin(azimuth)) / (n * ground.pixel_size)
    haze = rng.uniform(0, 0.25) + 0.1 * smooth_noise(rng, n, 50 / ground.pixel_size)
    cloud, shadow = _clouds(rng, n, ground.pixel_size, clouds)
    return Appearance(
        crops=np.exp(rng.normal(0, 0.25 * strength, (parcels, 4))) * tint,
        rows=0.15 * strength * rows,
        light=1 + 0.3 * strength * (ramp - ramp.mean()),
        haze=np.clip(haze, 0, 1) * strength,
        cloud=cloud,
        cloud_shadow=shadow,
    )


def _clouds(rng, n, pixel_size, share):
    """Opacity of clouds and of their shadows. A third of the scenes has clouds, so these have three times `share`."""
    field, cloudy = smooth_noise(rng, n, 30 / pixel_size), rng.random() < 1 / 3
    direction, distance = rng.uniform(0, 2 * np.pi), rng.uniform(10, 30) / pixel_size
    if not (share and cloudy):
        return np.zeros((n, n), np.float32), np.zeros((n, n), np.float32)
    threshold = np.quantile(field, 1 - min(3 * share, 1.0))
    opacity = 1 / (1 + np.exp(-8 * (field - threshold)))
    shift = round(distance * math.sin(direction)), round(distance * math.cos(direction))
    return opacity, np.roll(opacity, shift, (0, 1))
