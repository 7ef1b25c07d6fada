"""Small folder trees in the layout of the published data sets."""

import json

import numpy as np
import rasterio
from rasterio.transform import from_origin

UTM = "EPSG:32631"


def write_raster(path, array, origin=(592000.0, 5750000.0), pixel=1.0, crs=UTM):
    """Writes [H, W, bands] (or [H, W]) with its upper left corner at `origin`, metres."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.atleast_3d(array)
    height, width, count = array.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=count, dtype=array.dtype, crs=crs,
        transform=from_origin(*origin, pixel, pixel),
    ) as raster:  # fmt: skip
        raster.write(np.moveaxis(array, -1, 0))


class Spacenet6Tree:
    """A small SpaceNet 6: one tile per easting, 60 x 60 pixels of 7.5 m, so that a tile covers 450 m as in the original.

    Strips alternate between flag 0 and 1. The building of a tile covers rows 6 to 12 and columns 15 to 30 of the raw
    raster; every third tile has no building. The upper ten rows have no SAR data.
    """

    SIZE, PIXEL = 60, 7.5
    STRIPS = ("20190804111224_20190804111453", "20190804111851_20190804112030")

    def __init__(self, root, eastings, geojson=True, products=("PS-RGB",)):
        self.root, self.names = root, []
        area = root / "train" / "AOI_11_Rotterdam"
        self.area = area
        rows = []
        for number, easting in enumerate(eastings):
            name = f"{self.STRIPS[number % 2]}_tile_{number + 1}"
            self.names.append(name)
            origin = (easting, 5750000.0)
            sar, eo = self.images(number)
            write_raster(self.file("SAR-Intensity", name), sar, origin, self.PIXEL)
            for product in products:
                bands = {"PS-RGB": (0, 1, 2), "PS-RGBNIR": (2, 1, 0, 3)}[product]
                write_raster(self.file(product, name), eo[..., bands], origin, self.PIXEL)
            box = None if number % 3 == 2 else [(15, 6), (30, 6), (30, 12), (15, 12), (15, 6)]
            if geojson:
                self.write_geojson(name, box, origin)
            rows += [(name, number, "POLYGON EMPTY" if box is None else wkt(box))]
        summary = area / "SummaryData"
        summary.mkdir(parents=True, exist_ok=True)
        (summary / "SAR_orientations.txt").write_text(f"{self.STRIPS[0]} 0\n{self.STRIPS[1]} 1\n")
        lines = ["ImageId,TileBuildingId,PolygonWKT_Pix,Mean_Building_Height"]
        lines += [f'{name},{number},"{text}",' for name, number, text in rows]
        (summary / "SN6_Train_AOI_11_Rotterdam_Buildings.csv").write_text("\n".join(lines) + "\n")

    def file(self, part, name, suffix="tif"):
        folder, product = (part, part) if suffix == "tif" else ("geojson_buildings", "Buildings")
        return self.area / folder / f"SN6_Train_AOI_11_Rotterdam_{product}_{name}.{suffix}"

    def images(self, number):
        """All pixels of a tile differ, so that a rotated tile can be detected."""
        rng = np.random.default_rng(number)
        sar = rng.uniform(1, 90, (self.SIZE, self.SIZE, 4)).astype(np.float32)
        sar[:10] = 0
        return sar, rng.integers(1, 255, (self.SIZE, self.SIZE, 4)).astype(np.uint8)

    def write_geojson(self, name, box, origin):
        path = self.file("", name, "geojson")
        path.parent.mkdir(parents=True, exist_ok=True)
        ring = [(origin[0] + x * self.PIXEL, origin[1] - y * self.PIXEL) for x, y in box or ()]
        feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
        crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
        text = {"type": "FeatureCollection", "crs": crs, "features": [feature] if box else []}
        path.write_text(json.dumps(text))


def wkt(box):
    return "POLYGON ((" + ", ".join(f"{x} {y}" for x, y in box) + "))"


class Sen12msTree:
    """A small SEN12MS: patches of 32 x 32 pixels of 10 m, two per scene; labels cycle through all codes from 0 to 17."""

    SIZE = 32

    def __init__(self, root, scenes, sources=("s1", "s2", "lc"), patches=2):
        self.root = root
        for number, scene in enumerate(scenes):
            group, scene_id = scene.split("/s1_")
            for patch in range(patches):
                origin = (500000.0 + 1000 * (number * patches + patch), 5750000.0)
                images = self.images(number * patches + patch)
                for source in sources:
                    write_raster(self.file(group, scene_id, patch, source), images[source], origin, 10.0)

    def file(self, group, scene, patch, source):
        # DFC2020: s1_validation contains ROIs0000_validation_s1_0_p3.tif, with one number for many scenes.
        number = "0" if scene == "validation" else scene
        return self.root / group / f"{source}_{scene}" / f"{group}_{source}_{number}_p{patch}.tif"

    def images(self, number):
        rng = np.random.default_rng(number)
        shape = (self.SIZE, self.SIZE)
        codes = np.arange(self.SIZE**2).reshape(shape)
        lc = np.stack([codes % 18, codes % 5, codes % 5, codes % 5], -1).astype(np.uint16)
        return {
            "s1": rng.normal((-12, -18), 3, (*shape, 2)).astype(np.float32),
            "s2": rng.integers(1, 4000, (*shape, 13)).astype(np.uint16),
            "lc": lc,
            "dfc": (codes % 11).astype(np.uint16),
        }


class WhuTree:
    """A small WHU-OPT-SAR: scenes of 90 x 60 pixels (columns x rows) of 5 m; labels cycle through all codes."""

    HEIGHT, WIDTH = 60, 90

    def __init__(self, root, scenes):
        self.root = root
        for number, scene in enumerate(scenes):
            origin = (500000.0 + 1000 * number, 3400000.0)
            for folder, image in self.images(number).items():
                write_raster(root / folder / f"{scene}.tif", image, origin, 5.0, "EPSG:32649")

    def images(self, number):
        rng = np.random.default_rng(number)
        shape = (self.HEIGHT, self.WIDTH)
        codes = (np.arange(self.HEIGHT * self.WIDTH).reshape(shape) % 8 * 10).astype(np.uint8)
        return {
            "sar": rng.integers(1, 255, shape).astype(np.uint8),
            "optical": rng.integers(1, 255, (*shape, 4)).astype(np.uint8),
            "lbl": codes,
        }
