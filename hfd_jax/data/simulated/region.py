"""Regions: what differs between one part of the simulated world and another."""

import dataclasses

import numpy as np

CLASSES, SAR_BANDS, EO_BANDS = 5, 2, 4


@dataclasses.dataclass(frozen=True)
class Region:
    """How a region deviates from the standard world, which has the default values.

    Attributes:
      water, town, forest, soil: how much more of each there is, in standard deviations of the field that places it.
      streets: distance between streets, relative to the standard.
      relief: strength of the terrain's slopes as both sensors see them, 0 (flat) to 1 (hilly).
      incidence: deviation of the incidence angle, degrees.
      looks: number of looks, relative to the options'.
      backscatter: deviation of each class's backscatter, dB [5, 2]: moisture, roughness, season.
      calibration: deviation of the whole image, dB [2].
      season: factor of each class's reflectance [5, 4].
    """

    water: float = 0.0
    town: float = 0.0
    forest: float = 0.0
    soil: float = 0.0
    streets: float = 1.0
    relief: float = 0.0
    incidence: float = 0.0
    looks: float = 1.0
    backscatter: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((CLASSES, SAR_BANDS), np.float32))
    calibration: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(SAR_BANDS, np.float32))
    season: np.ndarray = dataclasses.field(default_factory=lambda: np.ones((CLASSES, EO_BANDS), np.float32))


STANDARD = Region()


def draw_region(seed: int, number: int) -> Region:
    """Returns region `number` of the world `seed`. The spreads are plausible values, not fitted to any place."""
    rng = np.random.default_rng([seed, number, 2])
    water, town, forest, soil = rng.normal(0, (0.3, 0.4, 0.5, 0.4))
    return Region(
        water=water,
        town=town,
        forest=forest,
        soil=soil,
        streets=rng.uniform(0.75, 1.4),
        relief=rng.uniform(0, 1),
        incidence=rng.uniform(-8, 8),
        looks=float(rng.choice([0.8, 1.0, 2.0, 4.0])),
        backscatter=rng.normal(0, 1.2, (CLASSES, SAR_BANDS)).astype(np.float32),
        calibration=rng.normal(0, 0.7, SAR_BANDS).astype(np.float32),
        season=np.exp(rng.normal(0, 0.1, (CLASSES, EO_BANDS))).astype(np.float32),
    )
