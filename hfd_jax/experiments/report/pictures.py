"""Pictures of tiles as data URIs: what the sensors saw, what the networks say, and where they are wrong."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import image as matplotlib_image

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data.facts import Facts
from hfd_jax.evaluation import figures

# Larger tiles are reduced to at most so many pixels along an edge: the page stays small enough to send.
MAX_EDGE = 256
RIGHT, WRONG, UNKNOWN = (222, 226, 230), (208, 2, 27), (60, 60, 60)


def columns(titles: Mapping[str, str]) -> list[str]:
    """Headings: SAR, EO, label, then for every network its map and its errors."""
    return ["SAR", "EO", "label", *(heading for title in titles.values() for heading in (title, "errors"))]


def tile_pictures(
    tile: Mapping[str, Any], titles: Mapping[str, str], facts: Facts, eo_bands: tuple[str, ...]
) -> list[str]:
    """Data URIs of a tile's pictures, in the order of `columns`.

    Args:
      tile: of `survey.Survey`.
      titles: network -> heading, in order.
      facts: colours and class names.
      eo_bands: names of the bands in the tile's eo.
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
    """[H, W] class indices -> [H, W, 3] uint8: right, wrong, or not judged."""
    colours = np.array([RIGHT, WRONG, UNKNOWN], np.uint8)
    return colours[np.where(label == IGNORE_LABEL, 2, (prediction != label).astype(int))]


def photo_uri(picture: np.ndarray) -> str:
    """[H, W] or [H, W, 3] in 0..1; a large one is averaged down."""
    factor = -(-max(picture.shape[:2]) // MAX_EDGE)
    height, width = (edge // factor * factor for edge in picture.shape[:2])
    parts = picture[:height, :width].reshape(height // factor, factor, width // factor, factor, -1).mean((1, 3))
    pixels = np.broadcast_to((255 * parts).round().astype(np.uint8), (*parts.shape[:2], 3))
    # Speckle does not compress without loss.
    return _uri(pixels, "jpeg", {"quality": 92, "subsampling": 0})


def map_uri(picture: np.ndarray) -> str:
    """[H, W, 3] uint8 of few colours; of a large one every n-th pixel is taken, so that no colours mix."""
    factor = -(-max(picture.shape[:2]) // MAX_EDGE)
    return _uri(picture[::factor, ::factor], "png", {"optimize": True})


def _uri(pixels: np.ndarray, kind: str, options: dict[str, Any]) -> str:
    buffer = io.BytesIO()
    matplotlib_image.imsave(buffer, np.ascontiguousarray(pixels), format=kind, pil_kwargs=options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
