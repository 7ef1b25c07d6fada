"""Maps scenes in turn, keeps finished maps, and continues after a scene that fails."""

import dataclasses
import re
import sys
from collections.abc import Sequence

import jax

from hfd_jax.core.errors import DataError
from hfd_jax.core.logs import duration
from hfd_jax.core.parallel import wait_for_all
from hfd_jax.inference.mapping.placing import check_outlines
from hfd_jax.inference.mapping.polygons import write_polygons
from hfd_jax.inference.mapping.predict import Predictor
from hfd_jax.inference.mapping.writer import CLASSES, CONFIDENCE, Target


@dataclasses.dataclass(frozen=True)
class Polygons:
    """The polygons to make from every map; see `write_polygons`.

    Attributes:
      class_name: the class to outline.
      ending: "gpkg" or "geojson".
      min_area: square metres.
      simplify: pixels.
    """

    class_name: str
    ending: str = "gpkg"
    min_area: float = 0.0
    simplify: float = 1.0

    def write(self, target: Target) -> str:
        """Writes the polygons of a scene's maps, replacing existing ones; returns a description."""
        path = f"{target.stem}_{re.sub(r'[^A-Za-z0-9]+', '_', self.class_name)}.{self.ending}"
        maps = target.path(CLASSES), target.path(CONFIDENCE)
        options = {"min_area": self.min_area, "simplify": self.simplify}
        count = write_polygons(*maps, path, self.class_name, **options)
        return f"{path} ({count} polygon{'' if count == 1 else 's'})"


def predict_scenes(
    predictor: Predictor,
    scenes: Sequence[str],
    targets: Sequence[Target],
    overwrite: bool,
    polygons: Polygons | None = None,
) -> None:
    """Maps this process's share of the scenes, every n-th one on n processes.

    Args:
      predictor: the network and its options.
      scenes: paths of all scenes.
      targets: the maps of each scene.
      overwrite: replace finished maps.
      polygons: polygons to make from every map; the targets must then include CONFIDENCE.

    Raises:
      DataError: some scenes failed; the maps of all others are written.
      WorkdirError: maps with these names were made with other settings (raised before anything is computed), or a map
        cannot be written.
    """
    pairs = list(zip(scenes, targets, strict=True))
    finished = set() if overwrite else {path for path, target in pairs if _is_finished(predictor, path, target)}
    failed, megapixels, seconds = [], 0.0, 0.0
    share = list(enumerate(pairs, 1))[jax.process_index() :: jax.process_count()]
    for number, (path, target) in share:
        label = f"scene {number}/{len(scenes)}"
        try:
            if path in finished:
                print(f"{label}: {path}: is finished", flush=True)
            else:
                size, spent = _predict(predictor, path, target, label, polygons is not None)
                megapixels, seconds = megapixels + size, seconds + spent
            if polygons:
                print(f"{label}: written: {polygons.write(target)}", flush=True)
        except DataError as error:
            if len(share) > 1:  # a single failure is reported once, at the end
                print(f"{label}: failed: {error}", file=sys.stderr, flush=True)
            failed.append(str(error))
    if megapixels:
        print(f"{megapixels:.1f} Mpixel in {duration(seconds)}: {megapixels / seconds:.2f} Mpixel/s", flush=True)
    wait_for_all("scenes predicted")
    if failed:
        count = f"{len(failed)} of {len(share)} scenes failed: " if len(share) > 1 else ""
        raise DataError(count + "; ".join(failed))


def _is_finished(predictor: Predictor, path: str, target: Target) -> bool:
    try:
        with predictor.open(path) as scene:
            return target.is_complete(predictor.settings(scene))
    except DataError:  # reported when the scene is predicted
        return False


def _predict(
    predictor: Predictor, path: str, target: Target, label: str, outlined: bool = False
) -> tuple[float, float]:
    """Maps a scene, whose map is `outlined` by polygons afterwards; returns (megapixels, seconds)."""
    with predictor.open(path) as scene:
        if outlined:
            check_outlines(path, scene.georeference)
        height, width = scene.shape
        print(f"{label}: {path}, {width} x {height} pixels", flush=True)
        seconds = predictor(scene, target, label)
        for note in scene.notes:
            print(f"{label}: note: {note}", flush=True)
        written = ", ".join(map(target.path, target.products))
        megapixels = height * width / 1e6
        print(f"{label}: written: {written} ({duration(seconds)}, {megapixels / seconds:.2f} Mpixel/s)", flush=True)
    return megapixels, seconds
