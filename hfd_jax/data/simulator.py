"""Simulated pairs of radar and optical tiles: a data set that needs no files.

A scene is drawn on a ground grid (a height map in metres and a class map), then seen twice:

* by an optical camera straight above, with colours, sun shadow and sensor noise;
* by a radar far to the LEFT of the image that looks along +x at a constant incidence angle. A point at
  ground position x and height h returns at the range of x - h / tan(incidence): buildings lean towards the radar
  (layover); what lies behind them within h * tan(incidence) stays dark (shadow); a wall and the ground in front of it
  form a corner that returns a bright line at the foot of the wall (double bounce).

Both images, the label and the height map share the ground grid. Every tile is a function of (options, index, region)
alone. Backscatter levels are round values typical of C to X band at 30 to 45 degrees; they are meant to be plausible,
not calibrated against any sensor.

With the options' defaults, nearly all that the camera sees is about the classes, training and test tiles come from one
world, and labels are exact. `regions`, `nuisance`, `clouds`, `label_shift` and `label_change` add what real data have:
places and dates that differ, crops and haze that only one sensor sees, and labels that are not exact.
"""

import dataclasses
import math

import numpy as np
from scipy import ndimage

from hfd_jax.core.options import option
from hfd_jax.data.simulated.appearance import draw_appearance
from hfd_jax.data.simulated.ground import BUILDINGS, GRASS, ROAD, TALLEST_M, TREES, WATER, Ground, lay_out, smooth_noise
from hfd_jax.data.simulated.optical import optical_image
from hfd_jax.data.simulated.radar import radar_image
from hfd_jax.data.simulated.region import STANDARD, Region

__all__ = ["BUILDINGS", "GRASS", "ROAD", "TREES", "WATER", "Scene", "SceneOptions", "simulate"]

VERSION = 1  # of the simulator; increased when its tiles change
LATER = ("regions", "nuisance", "clouds", "label_shift", "label_change")  # options that version 0.1 did not have
CLASS_NAMES = ("grass", "water", "road", "trees", "buildings")
CLASS_COLOURS = ((178, 204, 116), (52, 120, 190), (90, 90, 96), (38, 110, 60), (214, 84, 62))
SAR_BANDS = ("VV", "VH")
EO_BANDS = ("R", "G", "B", "NIR")
_UNSEEN_DB = 1.5  # spread of the parcels' backscatter at nuisance 1


@dataclasses.dataclass(frozen=True)
class SceneOptions:
    """Options of a simulated data set; see `option` fields for their meaning and units."""

    size: int = option(64, "side length of a square tile, pixels")
    pixel_size: float = option(1.0, "edge of a pixel on the ground, metres")
    looks: float = option(1.0, "number of looks of the speckle (Gamma distributed with this shape and mean 1)")
    incidence: float = option(38.0, "incidence angle of the radar, degrees from the vertical, 15 to 75")
    misregistration: float = option(0.0, "length of the shift between SAR and optical image, pixels")
    unlabelled_share: float = option(0.0, "share of the training tiles without label")
    seed: int = option(0, "random seed of all tiles")
    regions: int = option(0, "regions per split, of their own land cover, relief, season and radar; 0: one world")
    nuisance: float = option(0.0, "strength of what only one sensor sees, 0 to 2; 1 is strong")
    clouds: float = option(0.0, "share of the optical pixels under clouds, 0 to 0.3")
    label_shift: float = option(0.0, "displacement of class borders in labels, pixels; not in the test split")
    label_change: float = option(0.0, "share of the land whose label is outdated, 0 to 1; not in the test split")

    def __post_init__(self):
        checks = {
            "size": (self.size >= 32, "at least 32 pixels"),
            "pixel_size": (self.pixel_size > 0, "a length in metres above 0"),
            "looks": (self.looks > 0, "above 0"),
            "incidence": (15 <= self.incidence <= 75, "15 to 75 degrees"),
            "misregistration": (0 <= self.misregistration <= 16, "0 to 16 pixels"),
            "seed": (self.seed >= 0, "0 or more"),
            "unlabelled_share": (0 <= self.unlabelled_share < 1, "at least 0, below 1"),
            "regions": (self.regions >= 0, "0 or more"),
            "nuisance": (0 <= self.nuisance <= 2, "0 to 2"),
            "clouds": (0 <= self.clouds <= 0.3, "0 to 0.3"),
            "label_shift": (0 <= self.label_shift <= 8, "0 to 8 pixels"),
            "label_change": (0 <= self.label_change <= 1, "0 to 1"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise ValueError(f"scenes.{name} is {getattr(self, name)}; expected {expected}")

    def with_true_labels(self) -> "SceneOptions":
        return dataclasses.replace(self, label_shift=0.0, label_change=0.0)


@dataclasses.dataclass(frozen=True)
class Scene:
    """One simulated pair.

    Attributes:
      sar: [H, W, 2] float32, dB.
      eo: [H, W, 4] uint8.
      label: [H, W] uint8, as an annotator drew it.
      height: [H, W] float32, metres.
      clear: [H, W] bool; False under clouds.
    """

    sar: np.ndarray
    eo: np.ndarray
    label: np.ndarray
    height: np.ndarray
    clear: np.ndarray


def simulate(index: int, options: SceneOptions, region: Region = STANDARD) -> Scene:
    """Returns tile `index` of a region; equal arguments give equal bytes."""
    rng, other = np.random.default_rng([options.seed, index]), np.random.default_rng([options.seed, index, 1])
    incidence = min(max(options.incidence + region.incidence, 15.0), 75.0)
    # Everything that can lean or cast a shadow into the tile must stand on the padded ground.
    tangent = math.tan(math.radians(incidence))
    margin = math.ceil(TALLEST_M * max(1 / tangent, tangent, 1.8) / options.pixel_size) + 2
    varied = options.nuisance or options.clouds or options.label_change or region is not STANDARD
    n = options.size + 2 * margin
    ground = lay_out(rng, other if varied else None, n, options.pixel_size, region)
    appearance = draw_appearance(other, ground, options.nuisance, options.clouds) if varied else None
    unseen_db = other.normal(0, _UNSEEN_DB * options.nuisance, (ground.parcels.max() + 1, 1)).astype(np.float32)
    sar = radar_image(rng, ground, incidence, options.looks * region.looks, region, unseen_db)
    eo = optical_image(rng, ground, options.misregistration, region, appearance)
    label = annotated(other, ground, options.label_shift, options.label_change)
    inner = (slice(margin, margin + options.size),) * 2
    clear = appearance.clear if appearance else np.ones(label.shape, bool)
    parts = {"sar": sar, "eo": eo, "label": label, "height": ground.height, "clear": clear}
    return Scene(**{name: np.ascontiguousarray(part[inner]) for name, part in parts.items()})


def annotated(rng: np.random.Generator, ground: Ground, shift: float, change: float) -> np.ndarray:
    """The class map [N, N] uint8 with displaced borders, and with parcels from before trees and houses stood there.

    Args:
      rng: random generator.
      ground: the truth.
      shift: displacement of the borders, pixels (root mean square per axis).
      change: share of the parcels that are outdated.
    """
    label = ground.classes.copy()
    if change:
        outdated = (rng.random(ground.parcels.max() + 1) < change)[ground.parcels]
        label[outdated & np.isin(label, (TREES, BUILDINGS))] = GRASS
    if shift:
        n = len(label)
        moves = [shift * smooth_noise(rng, n, 12 / ground.pixel_size) for _ in range(2)]
        label = ndimage.map_coordinates(label, np.mgrid[0:n, 0:n] + moves, order=0, mode="nearest")
    return label
