"""Turns one class of a class map into polygons: GeoPackage (in the map's CRS) or GeoJSON (longitude and latitude).

  python -m tools.polygonize --input=map.tif --class_name=building --output=buildings.gpkg
  python -m tools.polygonize --input=map.tif --confidence=confidence.tif --class_name=water --output=water.geojson \\
      --min_area=400

The map is a GeoTIFF with one band of class indices and the class names as tags CLASS_0, CLASS_1, ..., as tools.predict
writes it. Each polygon is a connected component of the class with the fields id, class, area_m2 (of its
pixels; on the ellipsoid if the map's CRS does not preserve areas) and, with --confidence, its mean confidence (0 to 1).
The map is read in strips, so memory holds one strip and the polygons. The file appears once it is complete.
"""

import argparse

from hfd_jax.inference.mapping.components import CONNECTIVITIES
from hfd_jax.inference.mapping.polygons import write_polygons
from tools import cli


def main(arguments: argparse.Namespace) -> None:
    count = write_polygons(
        arguments.input,
        arguments.confidence,
        arguments.output,
        arguments.class_name,
        min_area=arguments.min_area,
        simplify=arguments.simplify,
        connectivity=arguments.connectivity,
    )
    noun = "polygon" if count == 1 else "polygons"
    print(f"written: {arguments.output} ({count} {noun} of class {arguments.class_name})")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("polygonize", __doc__)
    parser.add_argument("--input", required=True, help="class map, GeoTIFF")
    parser.add_argument("--confidence", help="GeoTIFF on the same grid: 0 to 254 for 0 to 1, 255 for no value")
    parser.add_argument("--class_name", required=True, help="name of the class")
    parser.add_argument("--output", required=True, help="file to write, .gpkg or .geojson")
    parser.add_argument("--min_area", type=float, default=0.0, help="drop smaller polygons, square metres")
    parser.add_argument("--simplify", type=float, default=1.0, help="tolerance in pixels; 0 keeps the pixel edges")
    parser.add_argument(
        "--connectivity",
        type=int,
        default=4,
        choices=CONNECTIVITIES,
        help="8: pixels that share only a corner are also connected",
    )
    return parser


if __name__ == "__main__":
    cli.launch(make_parser(), main)
