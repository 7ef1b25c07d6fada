"""Pictures of tiles as data URIs: sensor images, labels, predicted maps and error maps."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import image as matplotlib_image

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data.facts import Facts
from hfd_jax.evaluation import figures

# Maximum edge length in pixels; larger tiles are reduced to keep the page small.
MAX_EDGE = 256
RIGHT, WRONG, IGNORED = (222, 226, 230), (208, 2, 27), (60, 60, 60)


def columns(titles: Mapping[str, str]) -> list[str]:
    """Returns the column headings: SAR, EO, label, then map and errors for each network."""
    return ["SAR", "EO", "label", *(heading for title in titles.values() for heading in (title, "errors"))]


def tile_pictures(
    tile: Mapping[str, Any], titles: Mapping[str, str], facts: Facts, eo_bands: tuple[str, ...]
) -> list[str]:
    """Returns data URIs of a tile's pictures, in the order of `columns`.

    Args:
      tile: an entry of `survey.Survey.best` or `worst`.
      titles: network -> heading, in column order.
      facts: class names and colours of the data set.
      eo_bands: names of the bands of the tile's "eo".
    """
    drawn = figures.tile_pictures(tile, titles, facts, eo_bands)
    pictures = [photo_uri(drawn["SAR"]), photo_uri(drawn["EO"]), map_uri(drawn["label"])]
    turn = (slice(None, None, -1),) * 2 if tile["rotated"] else ()
    valid = tile["sar_valid"] & tile["eo_valid"]
    for network, title in titles.items():
        wrong = error_map(tile[network], np.where(valid, tile["label"], IGNORE_LABEL))
        pictures += [map_uri(drawn[title]), map_uri(wrong[turn])]
    return pictures


def error_map(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Converts [H, W] class indices to a [H, W, 3] uint8 picture: correct, wrong or ignored."""
    colours = np.array([RIGHT, WRONG, IGNORED], np.uint8)
    return colours[np.where(label == IGNORE_LABEL, 2, (prediction != label).astype(int))]


def photo_uri(picture: np.ndarray) -> str:
    """Encodes a [H, W] or [H, W, 3] float picture in 0..1 as JPEG; averages blocks of a large one."""
    factor = -(-max(picture.shape[:2]) // MAX_EDGE)
    height, width = (edge // factor * factor for edge in picture.shape[:2])
    parts = picture[:height, :width].reshape(height // factor, factor, width // factor, factor, -1).mean((1, 3))
    pixels = np.broadcast_to((255 * parts).round().astype(np.uint8), (*parts.shape[:2], 3))
    # Speckle barely compresses with a lossless codec.
    return _uri(pixels, "jpeg", {"quality": 92, "subsampling": 0})


def map_uri(picture: np.ndarray) -> str:
    """Encodes a [H, W, 3] uint8 map as PNG; subsamples a large one, since averaging would mix class colours."""
    factor = -(-max(picture.shape[:2]) // MAX_EDGE)
    return _uri(picture[::factor, ::factor], "png", {"optimize": True})


def _uri(pixels: np.ndarray, kind: str, options: dict[str, Any]) -> str:
    buffer = io.BytesIO()
    matplotlib_image.imsave(buffer, np.ascontiguousarray(pixels), format=kind, pil_kwargs=options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
