"""Figures: panels of tiles and confusion matrices, drawn by Matplotlib without a display."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hfd_jax.core.errors import writing
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data.facts import Facts


def stretch(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Scales [H, W, C] to 0..1 between the 2nd and 98th percentiles of its valid values; invalid pixels are 0."""
    image = image.astype(np.float32)
    if not valid.any():
        return np.zeros_like(image)
    low, high = np.percentile(image[valid], (2, 98))
    return np.where(valid[..., None], np.clip((image - low) / np.maximum(high - low, 1e-6), 0, 1), 0)


def sar_picture(sar: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """First band in grey [H, W]."""
    return stretch(sar[..., :1], valid)[..., 0]


def eo_picture(eo: np.ndarray, valid: np.ndarray, bands: tuple[str, ...]) -> np.ndarray:
    """True colour [H, W, 3] if red, green and blue are among the band names, otherwise the first band in grey."""
    names = [("R", "B4", "red"), ("G", "B3", "green"), ("B", "B2", "blue")]
    index = [next((bands.index(name) for name in choice if name in bands), None) for choice in names]
    picture = stretch(eo[..., index] if None not in index else eo[..., [0, 0, 0]], valid)
    return picture**0.8


def label_picture(label: np.ndarray, facts: Facts) -> np.ndarray:
    """Class colours [H, W, 3] uint8; ignored pixels black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(facts.class_colours)] = facts.class_colours
    palette[IGNORE_LABEL] = 0
    return palette[label]


def tile_pictures(
    tile: Mapping[str, np.ndarray], titles: Mapping[str, str], facts: Facts, eo_bands: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Heading -> picture of a tile, [H, W] or [H, W, 3]: SAR, EO, label, then a class map per network.

    Args:
      tile: an element of `Evaluator.predictions`; a tile marked "rotated" is rotated back.
      titles: name of a class map in the tile -> heading, in order.
      facts: colours and class names.
      eo_bands: names of the bands in the tile's eo.
    """
    pictures = {
        "SAR": sar_picture(tile["sar"], tile["sar_valid"]),
        "EO": eo_picture(tile["eo"], tile["eo_valid"], eo_bands),
        "label": label_picture(tile["label"], facts),
        **{title: label_picture(tile[name], facts) for name, title in titles.items()},
    }
    north_up = (slice(None, None, -1),) * 2 if tile.get("rotated") else ()
    return {title: picture[north_up] for title, picture in pictures.items()}


def panel(
    path: str, tiles: list[dict[str, np.ndarray]], titles: dict[str, str], facts: Facts, eo_bands: tuple[str, ...]
) -> None:
    """Writes `panel_figure` as PNG."""
    save(panel_figure(tiles, titles, facts, eo_bands), path)


def panel_figure(
    tiles: Sequence[Mapping[str, np.ndarray]], titles: Mapping[str, str], facts: Facts, eo_bands: tuple[str, ...]
) -> Figure:
    """One row per tile, with the columns of `tile_pictures`."""
    columns = 3 + len(titles)
    figure = Figure(figsize=(2.1 * columns, 2.1 * len(tiles) + 0.6))
    axes = figure.subplots(len(tiles), columns, squeeze=False)
    for number, (row, tile) in enumerate(zip(axes, tiles, strict=True)):
        pictures = tile_pictures(tile, titles, facts, eo_bands)
        for axis, (title, picture) in zip(row, pictures.items(), strict=True):
            axis.imshow(picture, cmap="gray", interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if number == 0:
                axis.set_title(title, fontsize=9)
    handles = [
        Patch(color=np.array(colour) / 255, label=name)
        for name, colour in zip(facts.class_names, facts.class_colours, strict=True)
    ]
    figure.legend(handles=handles, loc="lower center", ncol=min(len(handles), columns + 2), fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.45 / (2.1 * len(tiles) + 0.6), 1, 1))
    return figure


def confusion_figure(matrices: Mapping[str, np.ndarray], class_names: tuple[str, ...]) -> Figure:
    """Row-normalised confusion matrices side by side; `matrices` maps a title to [K, K] counts (rows: reference)."""
    k = len(class_names)
    size = max(3.2, 0.55 * k + 1.6)
    figure = Figure(figsize=(size * len(matrices), size), layout="compressed")
    axes = figure.subplots(1, len(matrices), squeeze=False)
    for axis, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i in range(k):
            for j in range(k):
                axis.text(
                    j,
                    i,
                    f"{100 * share[i, j]:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share[i, j] > 0.55 else "black",
                )
        axis.set_xticks(range(k), class_names, rotation=40, ha="right", fontsize=8)
        axis.set_yticks(range(k), class_names if axis is axes[0][0] else [""] * k, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("prediction (% of the reference)", fontsize=8)
    axes[0][0].set_ylabel("reference", fontsize=8)
    return figure


def save(figure: Figure, path: str) -> None:
    """Writes a PNG file; raises WorkdirError if it cannot be written."""
    with writing(path):
        figure.savefig(path, dpi=110)


def pixels(figure: Figure) -> np.ndarray:
    """The figure as an image [H, W, 3] uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
