"""Inspects every tile of a raw data set before preparation."""

import concurrent.futures
import dataclasses
import multiprocessing
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from tqdm import tqdm

from hfd_jax.core import startup
from hfd_jax.core.errors import DataError, WorkerDiedError
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data import ground
from hfd_jax.data.cautions import cautions, pixel_edge
from hfd_jax.data.facts import Facts, Statistics, StatisticsAccumulator, check_statistics
from hfd_jax.data.tiles import Tile, TileSource, check_tile

CHUNK = 32


@dataclasses.dataclass
class Findings:
    """Findings of an inspection.

    Attributes:
      facts: of the data set.
      sizes: split -> tiles, good and bad.
      left_out: reason -> number of raw tiles that belong to no split.
      notes: remarks of the reader and cautions about the data.
      bad: (split, message) of every tile that preparation would refuse.
      doubtful: (split, tile, problem): empty, constant or entirely unlabelled tiles; preparation accepts them.
      statistics: over the good training tiles, or over all good tiles if there are none; None without a good tile.
      unit_problem: what contradicts the declared SAR unit, or "".
      leaks: (split, tile, other split, other tile) for tiles that show the same ground.
      examples: some good tiles, spread over the data set.
    """

    facts: Facts
    sizes: dict[str, int]
    left_out: dict[str, int]
    notes: list[str]
    bad: list[tuple[str, str]]
    doubtful: list[tuple[str, str, str]]
    statistics: Statistics | None
    unit_problem: str
    leaks: list[tuple[str, str, str, str]]
    examples: list[Tile]

    @property
    def is_clean(self) -> bool:
        return not (self.bad or self.unit_problem or self.leaks)


def inspect(source: TileSource, workers: int = 1, examples: int = 4) -> Findings:
    """Reads every tile once, on `workers` processes; shows progress and remaining time."""
    keys = {split: list(of_split) for split, of_split in source.keys().items() if len(of_split)}
    jobs = [(split, of_split[k : k + CHUNK]) for split, of_split in keys.items() for k in _starts(of_split)]
    results: list[dict[str, Any]] = []
    class_pixels: dict[str, Any] = {}
    measured = StatisticsAccumulator(source.facts)
    with tqdm(total=sum(map(len, keys.values())), desc="checking", unit="tile", mininterval=1.0) as progress:
        for job, result in zip(jobs, _results(source, jobs, workers), strict=True):
            pixels = result["statistics"]["class_pixels"]
            class_pixels[result["split"]] = class_pixels.get(result["split"], 0) + pixels
            if result["split"] in ("train", "unlabelled") or "train" not in keys:
                measured.merge(result["statistics"])
            results.append({key: value for key, value in result.items() if key != "statistics"})
            progress.update(len(job[1]))
    statistics, unit_problem = _check_unit(source.facts, measured)
    return Findings(
        facts=source.facts,
        sizes={split: len(of_split) for split, of_split in keys.items()},
        left_out=source.left_out,
        notes=[*source.notes, *cautions(source.facts, class_pixels, _edges(results))],
        bad=[line for result in results for line in result["bad"]],
        doubtful=[line for result in results for line in result["doubtful"]],
        statistics=statistics,
        unit_problem=unit_problem,
        leaks=_leaks(results),
        examples=_examples(source, keys, examples),
    )


def doubts(tile: Tile) -> list[str]:
    """Doubtful but acceptable properties of a tile."""
    found = []
    for sensor, valid in (("sar", tile.sar_valid), ("eo", tile.eo_valid)):
        pixels = getattr(tile, sensor)[valid]
        if not len(pixels):
            found.append(f"{sensor} is empty (no valid pixel)")
        elif len(pixels) > 1 and (constant := np.flatnonzero(np.ptp(pixels, axis=0) == 0)).size:
            found.append(f"{sensor} is constant in band {', '.join(str(k + 1) for k in constant)}")
    if tile.label is not None and (tile.label == IGNORE_LABEL).all():
        found.append("all pixels of its label are ignored")
    return found


def summary(findings: Findings) -> str:
    """One page of text."""
    facts, lines = findings.facts, []
    total = sum(findings.sizes.values())
    per_split = ", ".join(f"{count} {split}" for split, count in findings.sizes.items())
    lines.append(f"{facts.name}: {total} tiles ({per_split})")
    lines += [f"left out of the splits: {count} tiles {reason}" for reason, count in findings.left_out.items()]
    lines += [f"note: {note}" for note in findings.notes]
    lines.append(f"bad tiles: {len(findings.bad)}" + _first(f"{split}: {text}" for split, text in findings.bad))
    lines.append(
        f"doubtful tiles: {len(findings.doubtful)}"
        + _first(f"{split}: {tile}: {what}" for split, tile, what in findings.doubtful)
    )
    lines.append(
        f"tiles of different splits on the same ground: {len(findings.leaks)} pair(s)"
        + _first(f"{a} ({a_split}) and {b} ({b_split})" for a_split, a, b_split, b in findings.leaks)
    )
    lines.append(f"SAR unit as stored, {facts.sar_unit!r}: {_unit_finding(findings)}")
    if findings.statistics:
        for sensor in ("sar", "eo"):
            bands = getattr(findings.statistics, sensor)
            for name, *numbers in zip(
                getattr(facts, f"{sensor}_bands"), bands.mean, bands.std, bands.low, bands.high, strict=True
            ):
                lines.append("{} {}: mean {:.4g}, std {:.4g}, 1 % {:.4g}, 99 % {:.4g}".format(sensor, name, *numbers))
        pixels = findings.statistics.class_pixels
        shares = zip(facts.class_names, pixels, strict=True)
        lines.append("labelled pixels: " + ", ".join(f"{n} {100 * p / max(sum(pixels), 1):.2f} %" for n, p in shares))
    return "\n".join(lines)


def _first(lines, count: int = 5) -> str:
    lines = list(lines)
    more = [f"... and {len(lines) - count} more"] if len(lines) > count else []
    return "".join(f"\n    {line}" for line in [*lines[:count], *more])


def _starts(keys: list[Any]) -> range:
    return range(0, len(keys), CHUNK)


class _Worker:
    source: Any = None


def _start_worker(source: TileSource) -> None:
    startup.ignore_in_worker()
    _Worker.source = source


def _results(source: TileSource, jobs: list[tuple[str, list[Any]]], workers: int):
    if workers <= 1 or len(jobs) < 2:
        yield from (_inspect_chunk(source, *job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (source,))
    try:
        yield from pool.map(_inspect_in_worker, jobs)
    except BrokenProcessPool as error:
        raise WorkerDiedError("nothing was written") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _inspect_in_worker(job: tuple[str, list[Any]]) -> dict[str, Any]:
    return _inspect_chunk(_Worker.source, *job)


def _inspect_chunk(source: TileSource, split: str, keys: list[Any]) -> dict[str, Any]:
    statistics = StatisticsAccumulator(source.facts)
    result: dict[str, Any] = {
        "split": split,
        "bad": [],
        "doubtful": [],
        "names": [],
        "corners": [],
        "crs": [],
        "edges": [],
    }
    for key in keys:
        try:
            tile = source.read(key)
            check_tile(tile, source.facts)
        except DataError as error:
            result["bad"].append((split, str(error)))
            continue
        result["doubtful"] += [(split, tile.id, what) for what in doubts(tile)]
        label = np.full(tile.sar.shape[:2], IGNORE_LABEL, np.uint8) if tile.label is None else tile.label
        statistics.add(tile.sar, tile.eo, label, tile.sar_valid, tile.eo_valid)
        result["names"].append(tile.id)
        result["corners"].append(ground.corners(tile))
        result["crs"].append(tile.crs)
        result["edges"].append(pixel_edge(tile))
    return result | {"statistics": statistics.to_arrays()}


def _unit_finding(findings: Findings) -> str:
    if findings.statistics is None:
        return "not checked, no good tile has a valid pixel"
    fits = "any values are possible" if findings.facts.sar_unit == "raw" else "agrees with the values"
    return findings.unit_problem or fits


def _check_unit(facts: Facts, accumulator: StatisticsAccumulator) -> tuple[Statistics | None, str]:
    try:
        measured = accumulator.finish()
    except DataError:  # no valid pixel
        return None, ""
    try:
        check_statistics(facts, measured)
    except DataError as error:
        return measured, str(error)
    return measured, ""


def _leaks(results: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    names: dict[str, list[str]] = {}
    parts: dict[str, tuple[list, list]] = {}
    for result in results:
        names.setdefault(result["split"], []).extend(result["names"])
        places, systems = parts.setdefault(result["split"], ([], []))
        places.extend(result["corners"])
        systems.extend(result["crs"])
    arrays = {split: (np.array(places).reshape(-1, 4, 2), systems) for split, (places, systems) in parts.items()}
    return [
        (one, names[one][i], other, names[other][j])
        for (one, other), pairs in ((s.split("/"), p) for s, p in ground.shared_ground(arrays).items())
        for i, j in pairs
    ]


def _edges(results: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    edges: dict[str, list[float]] = {}
    for result in results:
        edges.setdefault(result["split"], []).extend(result["edges"])
    return {split: np.array(of_split) for split, of_split in edges.items()}


def _examples(source: TileSource, keys: dict[str, list[Any]], count: int) -> list[Tile]:
    everything = [key for of_split in keys.values() for key in of_split]
    tiles: list[Tile] = []
    # Tries twice the requested number, since some tiles may be bad or empty.
    for index in np.linspace(0, len(everything) - 1, min(2 * count, len(everything))).round().astype(int):
        try:
            tile = source.read(everything[index])
            check_tile(tile, source.facts)
        except DataError:
            continue
        if tile.sar_valid.any() and len(tiles) < count:
            tiles.append(tile)
    return tiles
