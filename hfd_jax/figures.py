"""Pictures: panels of tiles and confusion matrices. Matplotlib without a display."""

from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from hfd_jax.data.facts import Facts
from hfd_jax.labels import IGNORE_LABEL


def stretch(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """[H, W, C] -> the same in 0..1 between the 2nd and 98th percentile of all its valid values; invalid 0."""
    image = image.astype(np.float32)
    if not valid.any():
        return np.zeros_like(image)
    low, high = np.percentile(image[valid], (2, 98))
    return np.where(valid[..., None], np.clip((image - low) / np.maximum(high - low, 1e-6), 0, 1), 0)


def sar_picture(sar: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """First band in grey [H, W]."""
    return stretch(sar[..., :1], valid)[..., 0]


def eo_picture(eo: np.ndarray, valid: np.ndarray, bands: tuple[str, ...]) -> np.ndarray:
    """True colour [H, W, 3] where red, green and blue are known by name, else the first band in grey."""
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


def panel(
    path: str, tiles: list[dict[str, np.ndarray]], titles: dict[str, str], facts: Facts, eo_bands: tuple[str, ...]
) -> None:
    """One row a tile: SAR | EO | label | a class map per network.

    Args:
      path: PNG to write.
      tiles: as `Evaluator.predictions` returns them; one that is marked "rotated" is turned back.
      titles: column name in a tile -> heading, in order.
      facts: colours and class names.
      eo_bands: names of the bands in a tile's eo.
    """
    columns = 3 + len(titles)
    figure, axes = plt.subplots(len(tiles), columns, figsize=(2.1 * columns, 2.1 * len(tiles) + 0.6), squeeze=False)
    for number, (row, tile) in enumerate(zip(axes, tiles, strict=True)):
        pictures = {
            "SAR": sar_picture(tile["sar"], tile["sar_valid"]),
            "EO": eo_picture(tile["eo"], tile["eo_valid"], eo_bands),
            "label": label_picture(tile["label"], facts),
            **{title: label_picture(tile[name], facts) for name, title in titles.items()},
        }
        north_up = (slice(None, None, -1),) * 2 if tile.get("rotated") else ()
        for axis, (title, picture) in zip(row, pictures.items(), strict=True):
            axis.imshow(picture[north_up], cmap="gray", interpolation="nearest")
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
    _save(figure, path)


def confusion(path: str, matrices: dict[str, np.ndarray], class_names: tuple[str, ...]) -> None:
    """Row-normalised confusion matrices side by side; `matrices` maps a title to [K, K] counts (rows: reference)."""
    k = len(class_names)
    size = max(3.2, 0.55 * k + 1.6)
    figure, axes = plt.subplots(1, len(matrices), figsize=(size * len(matrices), size), squeeze=False)
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
    figure.tight_layout()
    _save(figure, path)


def _save(figure: Any, path: str) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
