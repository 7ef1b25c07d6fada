"""Random descriptions, config fields and GeoTIFF tags: each works or is refused in a sentence; none ends in a traceback."""

import copy
import json
import warnings

import numpy as np
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from configs import default
from hfd_jax.core.errors import ConfigError, DataError
from hfd_jax.data.folder import FolderSource
from hfd_jax.train.config_flags import field_names
from hfd_jax.train.validate import check_fields
from tests.rasters import DESCRIPTION, Pairs

# Derandomised: CI tries the same inputs every time. Files make an example slow, so there is no deadline.
BOUNDED = {"deadline": None, "suppress_health_check": list(HealthCheck)}

TEXT = st.one_of(
    st.sampled_from(["", "sar", "{id}", "{id}.tif", "*/{x}", "..", "x", "any", "db", "list", "B1"]), st.text()
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 255, 256, 65535, 2**31, 2**63, 1e400]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
KEYS = (
    *("files", "folder", "bands", "band_numbers", "nodata", "resample", "unit", "offset", "by", "column", "classes"),
    *(
        "ignore",
        "code",
        "name",
        "colour",
        "field",
        "train",
        "validation",
        "test",
        "table",
        "block",
        "look_axis",
        "seed",
    ),
)


def places(value, path=()):
    """Every path into a nested value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@st.composite
def descriptions(draw):
    """The description of a folder that works, with one to three changes: a value, a missing or a surplus key."""
    text = {"": copy.deepcopy(DESCRIPTION)}
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(list(places(text))[1:]))
        inside = text
        for key in path:
            inside = inside[key]
        change = draw(st.sampled_from(["value", "removed", "added"]))
        if change == "removed" and path:
            del inside[last]
        elif change == "added" and isinstance(inside[last], dict):
            inside[last][draw(st.sampled_from(KEYS))] = draw(JSON)
        else:
            inside[last] = draw(JSON)
    return text[""]


def read_all(root):
    """Reads every tile of a folder, as preparation does."""
    source = FolderSource(str(root))
    for keys in source.keys().values():
        for key in keys[:2]:
            source.read(key)


def test_random_descriptions(tmp_path):
    root = tmp_path
    Pairs(root).source()

    @settings(max_examples=60000, **BOUNDED)
    @given(descriptions())
    def tried(description):
        (root / "dataset.json").write_text(json.dumps(description))
        try:
            read_all(root)
        except DataError as error:
            assert str(root) in str(error), "names the file"

    tried()


FIELDS = field_names(default.get_config())
VALUES = st.one_of(NUMBERS, TEXT, st.booleans(), st.tuples(LEAVES), st.just(()))


def changed(field, value) -> ConfigDict | None:
    """The default config with one other value; None where ml_collections refuses its type."""
    config = default.get_config()
    try:
        config.update_from_flattened_dict({field: value})
    except (TypeError, ValueError):
        return None
    return config


@settings(max_examples=6000, **BOUNDED)
@given(st.sampled_from(FIELDS), VALUES)
def test_random_config_fields(field, value):
    config = changed(field, value)
    if config is None:
        return
    try:
        check_fields(config)
    except ConfigError as error:
        assert "config." in str(error), "names the field"


SHAPES = st.tuples(st.integers(1, 3), st.sampled_from([1, 16, 32]))
TYPES = st.sampled_from(["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64", "complex64"])
SYSTEMS = st.sampled_from([None, "EPSG:32631", "EPSG:4326", "EPSG:32601", 'LOCAL_CS["x"]'])
TRANSFORMS = st.sampled_from(
    [
        rasterio.Affine.identity(),
        from_origin(592000, 5750000, 10, 10),
        rasterio.Affine(10, 0, 592000, 0, 10, 5750000),
        rasterio.Affine(7, 7, 592000, 7, -7, 5750000),
        rasterio.Affine(0, 0, 0, 0, 0, 0),
        rasterio.Affine(1e-300, 0, 0, 0, -1e-300, 0),
    ]
)


@st.composite
def rasters(draw):
    """One GeoTIFF of the folder that works, written anew with another type, size, grid or other tags."""
    (bands, size), dtype = draw(SHAPES), draw(TYPES)
    tags = {
        "nodata": draw(st.sampled_from([None, 0, 1, -1, 255, float("nan")])),
        "gcps": draw(st.sampled_from([None, "line", "square"])),
        "mask": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, 1.0, 0.0, -2.0, 0.01, float("nan"), float("inf")])),
        "offset": draw(st.sampled_from([None, 0.0, -1000.0, float("nan")])),
        "colour": draw(st.booleans()),
    }
    return draw(st.sampled_from(["sar", "eo", "label"])), bands, size, dtype, draw(SYSTEMS), draw(TRANSFORMS), tags


def write_raster(path, bands, size, dtype, crs, transform, tags):
    values = np.random.default_rng(size).normal(size=(bands, size, size)) * 3
    if dtype.startswith("uint"):
        values = np.abs(values)
    place = {"crs": crs, "transform": transform}
    if tags["gcps"]:
        columns = (0, 9, 0, 9) if tags["gcps"] == "square" else (0, 0, 0, 0)
        rows = zip((0, 0, 9, 9), columns, strict=True)
        points = [GroundControlPoint(r, c, 592000 + 10 * c, 5750000 - 10 * r, 0) for r, c in rows]
        place = {"gcps": points, "crs": crs}
    try:
        with rasterio.open(
            path, "w", driver="GTiff", width=size, height=size, count=bands, dtype=dtype, nodata=tags["nodata"], **place
        ) as raster:
            raster.write(values.astype(dtype))
            if tags["mask"]:
                raster.write_mask(values[0] > 0)
            if tags["scale"] is not None:
                raster.scales = (tags["scale"],) * bands
            if tags["offset"] is not None:
                raster.offsets = (tags["offset"],) * bands
            if tags["colour"] and dtype == "uint8":
                raster.write_colormap(1, {0: (0, 0, 0, 255), 1: (9, 9, 9, 255)})
    except (ValueError, TypeError, AttributeError, rasterio.errors.RasterioError, rasterio.errors.CRSError):
        return False  # GDAL itself refuses to write it
    return True


def test_random_rasters(tmp_path):
    root = tmp_path
    Pairs(root).source()
    names = {kind: sorted((root / kind).glob("*.tif"))[0] for kind in ("sar", "eo", "label")}
    kept = {kind: path.read_bytes() for kind, path in names.items()}

    @settings(max_examples=60000, **BOUNDED)
    @given(rasters())
    def tried(made):
        kind, *raster = made
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                if write_raster(names[kind], *raster):
                    read_all(root)
        except DataError as error:
            assert str(root) in str(error), "names the file"
        finally:
            names[kind].with_suffix(".tif.msk").unlink(missing_ok=True)
            names[kind].write_bytes(kept[kind])

    tried()
