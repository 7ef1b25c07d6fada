"""Small rasters of any format, and a folder of pairs that tests change."""

import copy
import json
import warnings

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

UTM = "EPSG:32631"
DESCRIPTION = {
    "name": "toy",
    "sar": {"bands": ["VV", "VH"], "unit": "db"},
    "eo": {"bands": ["R", "G", "B"]},
    "label": {"classes": [{"code": 0, "name": "land"}, {"code": 1, "name": "water"}]},
    "look_axis": "x",
    "split": {"by": "list", "train": "train.txt", "test": "test.txt"},
}


def write(path, array, number=0, pixel=10.0, crs=UTM, mask=None, gcps=None, colormap=None, **tags):
    """Writes [H, W, bands] (or [H, W]) 10 km further east for each `number`; tags: nodata, scales, offsets, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.atleast_3d(array)
    height, width, count = array.shape
    place = {"crs": crs, "gcps": gcps} if gcps else {"crs": crs}
    if crs and not gcps:
        place["transform"] = from_origin(500000.0 + 10000 * number, 5750000.0, pixel, pixel)
    driver = {".png": "PNG", ".jp2": "JP2OpenJPEG"}.get(path.suffix.lower(), "GTiff")
    own = {key: tags.pop(key) for key in ("nodata", "photometric") if key in tags}
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver=driver, height=height, width=width, count=count, dtype=array.dtype, **place, **own
        ) as raster:
            raster.write(np.moveaxis(array, -1, 0))
            if mask is not None:
                raster.write_mask(mask)
            if colormap:
                raster.write_colormap(1, colormap)
            for key, value in tags.items():
                setattr(raster, key, value)


class Pairs:
    """Four pairs a to d of 16 x 16 pixels, of which a and b train; `text` is written as dataset.json."""

    def __init__(self, root, ending=".tif", **place):
        self.root, self.text, self.ending, self.place = root, copy.deepcopy(DESCRIPTION), ending, place
        rng = np.random.default_rng(0)
        self.names = list("abcd")
        self.sar = {n: rng.normal((-12, -18), 3, (16, 16, 2)).astype(np.float32) for n in self.names}
        self.eo = {n: rng.integers(1, 250, (16, 16, 3)).astype(np.uint8) for n in self.names}
        self.label = {n: rng.integers(0, 2, (16, 16)).astype(np.uint8) for n in self.names}
        for kind in ("sar", "eo", "label"):
            self.write(kind)
        (root / "train.txt").write_text("a\nb\n")
        (root / "test.txt").write_text("c\nd\n")

    def write(self, kind, change=lambda array: array, names=None, **tags):
        """Writes the rasters of one kind again, changed."""
        for number, name in enumerate(self.names):
            if names is None or name in names:
                path = self.root / kind / f"{name}{self.ending}"
                write(path, change(getattr(self, kind)[name]), number, **{**self.place, **tags})

    def source(self, **options):
        from hfd_jax.data.folder import FolderSource

        (self.root / "dataset.json").write_text(json.dumps(self.text))
        return FolderSource(str(self.root), **options)

    def tiles(self):
        """Split -> tiles."""
        source = self.source()
        return {split: [source.read(key) for key in keys] for split, keys in source.keys().items()}
