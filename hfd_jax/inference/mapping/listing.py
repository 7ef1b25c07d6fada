"""Finds the scenes to map, and names their maps."""

import glob
import os
from collections.abc import Sequence

from hfd_jax.core.errors import DataError, UserError
from hfd_jax.inference.mapping.writer import Product, Target

ENDINGS = (".tif", ".tiff")


def find_scenes(where: str) -> list[str]:
    """Returns the paths of the scenes that --input names, sorted; a list keeps its order.

    Args:
      where: a raster; a folder of GeoTIFFs; a pattern with * or ?; or NAME.txt with one path per line, relative to the
        list's folder.

    Raises:
      DataError: no scene is found.
    """
    if os.path.isdir(where):
        found = sorted(os.path.join(where, n) for n in os.listdir(where) if n.lower().endswith(ENDINGS) and n[0] != ".")
        expected = "no .tif file in this folder"
    elif where.lower().endswith(".txt") and os.path.exists(where):
        with open(where, encoding="utf-8-sig") as file:
            try:
                lines = [line.strip() for line in file]
            except UnicodeDecodeError as error:
                raise DataError(f"--input={where}: not a text file in UTF-8 ({error.reason})") from error
        found = [os.path.join(os.path.dirname(where), line) for line in lines if line]
        expected = "no path in this list"
    elif os.path.exists(where):
        return [where]
    else:
        found = sorted(glob.glob(where))
        expected = "no such file or folder, and no file matches it"
    if not found:
        raise DataError(f"--input={where}: {expected}")
    return found


def targets(scenes: Sequence[str], output: str, products: Sequence[Product]) -> list[Target]:
    """Names the maps of each scene: OUTPUT/STEM.tif and its companions.

    Raises:
      UserError: two scenes would write the same file, or a map would replace a scene.
    """
    found = [Target(os.path.join(output, os.path.splitext(os.path.basename(p))[0]), tuple(products)) for p in scenes]
    read = {os.path.realpath(path): path for path in scenes}
    written: dict[str, str] = {}
    for scene, target in zip(scenes, found, strict=True):
        for path in map(target.path, target.products):
            if os.path.realpath(path) in read:
                raise UserError(f"--output={output}: the map {path} would replace a scene; choose another folder")
            if path in written:
                raise UserError(
                    f"{written[path]} and {scene} would both write {path}; predict them into different folders"
                )
            written[path] = scene
    return found
