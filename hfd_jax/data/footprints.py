"""Building footprints from GeoJSON and from SpaceNet's summary table, drawn onto a tile's grid."""

import csv
import json
import os
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import rasterio.warp
import shapely

from hfd_jax.core.errors import DataError


def read_geojson(path: str, crs: Any) -> list[Any]:
    """The polygons of a GeoJSON file as shapely geometries in `crs`; DataError if it cannot be read."""
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file; a tile without buildings needs a file without features")
    if crs is None:
        raise DataError(f"{path}: the tile has no CRS; footprints need one")
    try:
        with open(path, encoding="utf-8") as file:
            text = json.load(file)
        geometries = [feature["geometry"] for feature in text["features"] if feature["geometry"]]
        # RFC 7946: without a CRS member it is longitude and latitude.
        stored = ((text.get("crs") or {}).get("properties") or {}).get("name", "OGC:CRS84")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a GeoJSON feature collection ({error!r})") from error
    try:
        if geometries and rasterio.CRS.from_user_input(stored) != crs:
            geometries = rasterio.warp.transform_geom(stored, crs, geometries)
        return [shapely.geometry.shape(geometry) for geometry in geometries]
    except Exception as error:  # GDAL's own errors share no base class that rasterio exports
        raise DataError(
            f"{path}: the footprints, with CRS {stored!r}, cannot be transformed to the tile ({error})"
        ) from error


def read_summary(path: str) -> dict[str, list[str]]:
    """ImageId -> list of PolygonWKT_Pix (pixel coordinates, x to the right, y down), empty without buildings."""
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file, and no folder geojson_buildings; expected one of them")
    found: dict[str, list[str]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if not {"ImageId", "PolygonWKT_Pix"} <= set(rows.fieldnames or ()):
            raise DataError(f"{path}: has the columns {rows.fieldnames}; expected at least ImageId and PolygonWKT_Pix")
        for row in rows:
            polygons = found.setdefault(row["ImageId"], [])
            if (row["PolygonWKT_Pix"] or "").strip() != "POLYGON EMPTY":
                polygons.append(row["PolygonWKT_Pix"] or "")
    return found


def polygons_of(texts: list[str], path: str) -> list[Any]:
    """Well-known text as shapely geometries; raises DataError, naming `path`, if one is invalid."""
    try:
        return [shapely.from_wkt(text) for text in texts]
    except shapely.errors.GEOSException as error:
        raise DataError(f"{path}: PolygonWKT_Pix is not valid well-known text ({error})") from error


def draw(shapes: list[Any], size: tuple[int, int], transform: Any) -> np.ndarray:
    """[H, W] uint8: 1 in pixels whose centre lies in a polygon."""
    if not shapes:
        return np.zeros(size, np.uint8)
    return rasterio.features.rasterize(shapes, out_shape=size, transform=transform, fill=0, dtype="uint8")
