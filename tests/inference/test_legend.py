"""The legend of a map, read back through GDAL."""

import ctypes
import pathlib

import numpy as np
import pytest
import rasterio

from hfd_jax.data.facts import Facts
from hfd_jax.inference.mapping.legend import ENDING, legend
from tests.rasters import write

FACTS = Facts("toy", ("VV",), ("R",), "uint8", "db", ("Wälder & <Moor>", "water"), ((0, 99, 0), (0, 90, 200)), "x")


@pytest.fixture
def gdal():
    """rasterio's copy of GDAL; rasterio itself does not read attribute tables."""
    found = [*pathlib.Path(rasterio.__file__).parent.parent.glob("rasterio.libs/libgdal*.so*")]
    if not found:
        pytest.skip("GDAL's library is not beside rasterio")
    library = ctypes.CDLL(str(found[0]))
    for name in ("GDALOpen", "GDALGetRasterBand", "GDALGetDefaultRAT", "GDALGetRasterCategoryNames"):
        getattr(library, name).restype = ctypes.c_void_p
    library.GDALRATGetValueAsString.restype = ctypes.c_char_p
    return library


def test_gdal_reads_names_and_colours(tmp_path, gdal):
    path = tmp_path / "map.tif"
    write(path, np.zeros((4, 4), np.uint8))
    (tmp_path / f"map.tif{ENDING}").write_bytes(legend(FACTS))
    data = gdal.GDALOpen(str(path).encode(), 0)
    band = gdal.GDALGetRasterBand(ctypes.c_void_p(data), 1)
    table = ctypes.c_void_p(gdal.GDALGetDefaultRAT(ctypes.c_void_p(band)))
    rows = [[gdal.GDALRATGetValueAsString(table, row, k).decode() for k in range(5)] for row in range(2)]
    assert gdal.GDALRATGetRowCount(table) == 2
    assert rows == [["0", "Wälder & <Moor>", "0", "99", "0"], ["1", "water", "0", "90", "200"]]
    names = ctypes.cast(gdal.GDALGetRasterCategoryNames(ctypes.c_void_p(band)), ctypes.POINTER(ctypes.c_char_p))
    assert [names[k].decode() for k in range(2)] == list(FACTS.class_names)
    gdal.GDALClose(ctypes.c_void_p(data))
