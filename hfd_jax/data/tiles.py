"""The stored form of a paired tile, and the TFDS builder that writes it.

A data set is a `TileSource`: facts, keys per split, and a function that reads one tile. Everything else (checking,
statistics, writing array_record files, reading them back) is the same for all and lives here.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from hfd_jax.data.facts import DB_RANGE, Facts, StatisticsAccumulator
from hfd_jax.errors import DataError
from hfd_jax.losses import IGNORE_LABEL


@dataclasses.dataclass
class Tile:
    """One pair on one grid.

    Attributes:
      id: unique name within the data set.
      sar: [H, W, bands] float32, dB or raw; anything where not sar_valid.
      eo: [H, W, bands] of the facts' eo_dtype.
      label: [H, W] uint8 class index or IGNORE_LABEL; None for an unlabelled pair.
      sar_valid, eo_valid: [H, W] bool, False where the sensor has no data.
      crs: text understood by rasterio, or "".
      transform: six affine coefficients (a, b, c, d, e, f) from pixel to CRS.
    """

    id: str
    sar: np.ndarray
    eo: np.ndarray
    label: np.ndarray | None
    sar_valid: np.ndarray
    eo_valid: np.ndarray
    crs: str = ""
    transform: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class TileSource(Protocol):
    """A raw data set. `keys` maps a split of `facts.SPLITS` to what `read` takes; empty splits are left out."""

    facts: Facts

    def keys(self) -> dict[str, Sequence[Any]]: ...

    def read(self, key: Any) -> Tile: ...


def check_tile(tile: Tile, facts: Facts) -> None:
    """Raises DataError where a tile contradicts the facts: sizes, bands, types, value range, class index."""
    height, width = tile.sar.shape[:2]
    expected = {
        "sar": ((height, width, len(facts.sar_bands)), "float32"),
        "eo": ((height, width, len(facts.eo_bands)), facts.eo_dtype),
        "sar_valid": ((height, width), "bool"),
        "eo_valid": ((height, width), "bool"),
    }
    if tile.label is not None:
        expected["label"] = ((height, width), "uint8")
    for name, (shape, dtype) in expected.items():
        array = getattr(tile, name)
        if array.shape != shape or array.dtype != np.dtype(dtype):
            raise DataError(
                f"tile {tile.id}: {name} is {array.dtype}{list(array.shape)}; expected {dtype}{list(shape)}"
            )
    for name, valid in (("sar", tile.sar_valid), ("eo", tile.eo_valid)):
        if not np.isfinite(getattr(tile, name)[valid]).all():
            raise DataError(f"tile {tile.id}: {name} holds NaN or infinite values where it is marked valid")
    if facts.sar_unit == "db" and tile.sar_valid.any():
        low, high = tile.sar[tile.sar_valid].min(), tile.sar[tile.sar_valid].max()
        if low < DB_RANGE[0] or high > DB_RANGE[1]:
            raise DataError(
                f"tile {tile.id}: SAR values from {low:.4g} to {high:.4g}; backscatter in dB lies within "
                f"{DB_RANGE[0]:g} to {DB_RANGE[1]:g}. Is the unit 'linear' or 'raw'?"
            )
    if tile.label is not None:
        wrong = np.setdiff1d(tile.label, [*range(len(facts.class_names)), IGNORE_LABEL])
        if wrong.size:
            raise DataError(
                f"tile {tile.id}: label holds {wrong.tolist()}; classes are 0 to {len(facts.class_names) - 1}, or 255"
            )


@dataclasses.dataclass(eq=False)
class SourceConfig(tfds.core.BuilderConfig):
    """A TFDS builder config that carries its source."""

    source: TileSource | None = None


class PairedTiles(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes any `TileSource` as TFDS array_record files, with facts, statistics and tile sizes in metadata.json.

    TFDS writes into a temporary folder and renames it when everything is there: an interrupted preparation leaves
    nothing behind that looks complete.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        facts = self.builder_config.source.facts

        def plane(dtype, *bands):
            # Raw bytes read several times faster than the default encoding.
            return tfds.features.Tensor(shape=(None, None, *bands), dtype=dtype, encoding=tfds.features.Encoding.BYTES)

        features = {
            "id": tfds.features.Text(),
            "sar": plane(np.float32, len(facts.sar_bands)),
            "eo": plane(np.dtype(facts.eo_dtype).type, len(facts.eo_bands)),
            "label": plane(np.uint8),
            "sar_valid": plane(np.bool_),
            "eo_valid": plane(np.bool_),
            "crs": tfds.features.Text(),
            "transform": tfds.features.Tensor(shape=(6,), dtype=np.float64),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Paired SAR and optical tiles: {facts.name}.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(facts=facts.to_dict(), shapes={}),
            disable_shuffling=True,  # index i is the i-th key: runs can name tiles, and evaluation knows their sizes
        )

    def _split_generators(self, dl_manager):
        keys = {split: keys for split, keys in self.builder_config.source.keys().items() if len(keys)}
        if "train" not in keys:
            raise DataError(f"{self.builder_config.source.facts.name}: no labelled training tile")
        self._statistics = StatisticsAccumulator(self.builder_config.source.facts)
        return {split: self._generate_examples(split, split_keys) for split, split_keys in keys.items()}

    def _generate_examples(self, split: str, keys: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        source, shapes = self.builder_config.source, []
        for index, key in enumerate(tqdm(keys, desc=f"preparing {split}", unit="tile", mininterval=1.0)):
            tile = source.read(key)
            check_tile(tile, source.facts)
            label = np.full(tile.sar.shape[:2], IGNORE_LABEL, np.uint8) if tile.label is None else tile.label
            if split in ("train", "unlabelled"):
                self._statistics.add(tile.sar, tile.eo, label, tile.sar_valid, tile.eo_valid)
            shapes.append(list(label.shape))
            yield (
                index,
                {**dataclasses.asdict(tile), "label": label, "transform": np.asarray(tile.transform, np.float64)},
            )
        # One entry stands for all where all are alike.
        self.info.metadata["shapes"][split] = shapes if len({tuple(s) for s in shapes}) > 1 else shapes[:1]
        self.info.metadata["statistics"] = self._statistics.finish().to_dict()


def prepare(builder_class: type[PairedTiles], name: str, source: TileSource, data_dir: str) -> str:
    """Writes `source` as `data_dir`/<builder>/<name>/<version>, unless it is there; returns that folder."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of every config that is not listed in the builder's class
    builder = builder_class(
        data_dir=data_dir,
        config=SourceConfig(name=name, source=source),
        file_format=tfds.core.FileFormat.ARRAY_RECORD,
    )
    logging.set_verbosity(verbosity)
    tfds.disable_progress_bar()  # ours knows the number of tiles and can tell the time left
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS talks of downloads and unknown sizes
        builder.download_and_prepare()
    return str(builder.data_dir)
