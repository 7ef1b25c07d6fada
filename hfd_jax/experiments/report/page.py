"""Collects the contents of the report and renders them as one self-contained HTML file."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from hfd_jax.core.errors import WorkdirError, writing
from hfd_jax.evaluation.diagnosis import verdict
from hfd_jax.experiments.report import curves, tables
from hfd_jax.experiments.report.pictures import columns, tile_pictures
from hfd_jax.experiments.report.records import StoredRun
from hfd_jax.experiments.report.survey import UNTRAINED, Survey, Throughput
from hfd_jax.experiments.report.tables import REFERENCE, Row
from hfd_jax.models.base import TAPS
from hfd_jax.train.networks import BASELINES

# Networks with their own colour in style.css; the others share the spare colours.
COLOURED = ("teacher", "student", REFERENCE, "teacher_init", UNTRAINED)
SPARE_COLOURS = 3
PER_CLASS = (("iou", "IoU"), ("f1", "F1"), ("precision", "precision"), ("recall", "recall"))


def make_environment() -> jinja2.Environment:
    """The templates of this folder and their filters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__))),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": score, "signed": lambda x: "" if x is None else f"{x:+.4f}"}
    return environment


def render(runs: Sequence[StoredRun], surveys: Sequence[Survey | None], defaults: Mapping[str, Any]) -> str:
    """Renders the page for runs and their surveys; `defaults` is the default config."""
    environment = make_environment()
    environment.globals["colour"] = {name: colour_of(name, runs) for name in every_network(runs)}
    sections = [section(run, survey, defaults) for run, survey in zip(runs, surveys, strict=True)]
    rows = [row for one in sections for row in one["rows"]]
    return environment.get_template("page.html.jinja").render(
        several=len(runs) > 1,
        runs=sections,
        rows=rows,
        class_groups=[class_group(names, group, surveys) for names, group in tables.by_classes(rows).items()],
        differing=tables.differing_fields([run.stored for run in runs]),
        groups=curves.learning_curves(runs),
        curve_networks=curve_networks(runs),
        dashes=[(run.name, curves.DASHES[k % len(curves.DASHES)]) for k, run in enumerate(runs)],
        geometry=curves,
        taps=TAPS,
    )


def check_writable(path: str) -> None:
    """Raises WorkdirError if the folder of `path` is missing or not writable."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise WorkdirError(f"{path}: cannot be written, the folder does not exist")
    if not os.access(folder, os.W_OK):
        raise WorkdirError(f"{path}: cannot be written, no permission")


def write(path: str, page: str) -> None:
    """Writes the file atomically.

    Raises:
      WorkdirError: the file cannot be written.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    with writing(path):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(page)
        os.replace(temporary, path)


def section(run: StoredRun, survey: Survey | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the template variables of one run."""
    return {
        "name": run.name,
        "root": run.workdir.root,
        "split": run.split,
        "data": run.config.data.name,
        "seed": run.config.seed,
        "remarks": run.remarks,
        "rows": tables.score_rows(run),
        "tiles": tile_section(run, survey) if survey else None,
        "similarity": similarity_section(survey) if survey and survey.similarity else None,
        "inference": inference(run, survey.throughput) if survey else None,
        "verdict": distillation_verdict(run),
        "training": training(run),
        "faults": faults(run),
        "changed": tables.changed_fields(defaults, run.stored),
        "config": tables.all_fields(run.stored),
        "versions": run.versions,
    }


def class_group(names: tuple[str, ...], rows: list[Row], surveys: Sequence[Survey | None]) -> dict[str, Any]:
    """Returns scores per class and confusion matrices for networks with the same classes."""
    facts = next((survey.facts for survey in surveys if survey and survey.facts.class_names == names), None)
    colours = facts.class_colours if facts else [None] * len(names)
    return {
        "classes": [(name, rgb(colour)) for name, colour in zip(names, colours, strict=True)],
        "measures": [(title, [(row, getattr(row.scores, key)) for row in rows]) for key, title in PER_CLASS],
        "matrices": [(row, tables.row_shares(row.scores.matrix), row.scores.matrix) for row in rows],
        "absent": {f"{row.run}: {row.title}": row.scores.absent for row in rows if row.scores.absent},
    }


def tile_section(run: StoredRun, survey: Survey) -> dict[str, Any]:
    """Returns the best and the worst tiles, and the comparison of the networks per tile."""
    order = sorted(survey.confusion, key=lambda name: (name == "teacher", name != survey.ranked_by))
    titles = {name: survey.records[name]["title"] for name in order}
    tile_scores = {name: survey.tile_scores(name) for name in order}
    bands = tuple(survey.records[survey.ranked_by]["bands"]["eo"])

    def shown(tile: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "id": tile["id"] + ("" if tile["entire"] else " (first window)"),
            "scores": [(name, titles[name], float(tile_scores[name][tile["position"]])) for name in order],
            "pictures": tile_pictures(tile, titles, survey.facts, bands),
        }

    best, worst = ([shown(tile) for tile in tiles] for tiles in (survey.best, survey.worst))
    ranking_scores = tile_scores[survey.ranked_by]
    labelled = ~np.isnan(ranking_scores)
    other = REFERENCE if REFERENCE in tile_scores and survey.ranked_by != REFERENCE else None
    return {
        "columns": columns(titles),
        "groups": [("Best", best), ("Worst", worst)],
        "classes": list(zip(survey.facts.class_names, map(rgb, survey.facts.class_colours), strict=True)),
        "ranked_by": titles[survey.ranked_by],
        "count": int(labelled.sum()),
        "unlabelled": int((~labelled).sum()),
        "compared_with": titles[other] if other else None,
        "better": np.sum(ranking_scores[labelled] > tile_scores[other][labelled]) if other else None,
    }


def similarity_section(survey: Survey) -> dict[str, Any]:
    """Returns the similarity to the teacher's features, overall and centred at each position of the tile."""
    known = [name for name in (UNTRAINED, *BASELINES, "student") if name in survey.similarity]
    names = known + sorted(set(survey.similarity) - set(known))
    titles = {name: record["title"] for name, record in survey.records.items()}
    titles[UNTRAINED] = f"student before training (seed {survey.records[survey.ranked_by]['config']['seed']})"
    before = REFERENCE if REFERENCE in names else UNTRAINED

    def block(values: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        gain = [values["student"][tap] - values[before][tap] for tap in TAPS] if "student" in values else None
        return {"rows": [(name, titles[name], [values[name][tap] for tap in TAPS]) for name in names], "gain": gain}

    titled = {
        "All variation: features centred over all positions": survey.similarity,
        "Variation between tiles: features centred at each position of the tile": survey.centred_similarity,
    }
    return {
        "blocks": [(title, block(values)) for title, values in titled.items()],
        "before": titles[before],
        "positions": [survey.positions.get(tap, 0) for tap in TAPS],
        "tiles": len(survey.tiles),
    }


def inference(run: StoredRun, measured: Throughput) -> dict[str, Any]:
    tiles, height, width = measured.batch
    return {
        "title": run.title(measured.network),
        "megapixels": three_digits(measured.megapixels),
        "tiles": three_digits(measured.megapixels * 1e6 / (height * width)),
        "what": f"{tiles} x {height} x {width}, {measured.dtype}, {measured.devices}",
    }


def training(run: StoredRun) -> list[dict[str, Any]]:
    """Returns the last entry of timing.jsonl for each network."""
    last = {line["network"]: line for line in run.timing if "steps_per_second" in line}
    return [
        {
            "title": run.title(name),
            "steps": three_digits(line["steps_per_second"]),
            "pairs": three_digits(line["steps_per_second"] * run.config.data.batch_size),
            "devices": line.get("devices", ""),
        }
        for name, line in last.items()
    ]


def distillation_verdict(run: StoredRun) -> list[str]:
    """Returns sentences about what distillation brought; empty if the student does not distil."""
    if not run.config.distill.method:
        return []
    logged = [line for line in run.log if line["network"] == "student" and "gradient_share" in line]
    last = logged[-1] if logged else {}
    taps = {name.removeprefix("hfd_"): value for name, value in last.items() if name.startswith("hfd_")}
    mean_iou = {name: entry.scores.mean_iou for name, entry in run.evaluated.items()}
    return verdict(mean_iou, last.get("gradient_share"), run.config.distill.max_share, taps)


def faults(run: StoredRun) -> list[str]:
    """Returns descriptions of the skipped steps in the log."""
    return [
        f"{run.title(line['network'])}, step {fault['step']}: {', '.join(fault['terms'])} not finite; "
        f"tiles {', '.join(fault['tiles'])}"
        for line in run.log
        for fault in line.get("faults", [])
    ]


def every_network(runs: Sequence[StoredRun]) -> list[str]:
    return list(dict.fromkeys([*COLOURED, *(name for run in runs for name in run.networks())]))


def curve_networks(runs: Sequence[StoredRun]) -> list[tuple[str, str]]:
    """Returns (network, title) for every network with logged values."""
    logged = {line["network"]: run for run in runs for line in run.log}
    names = dict.fromkeys(name for run in runs for name in run.networks() if name in logged)
    return [(name, logged[name].title(name)) for name in names]


def colour_of(network: str, runs: Sequence[StoredRun]) -> str:
    """Returns the CSS class of a network, the same in every chart."""
    if network in COLOURED:
        return f"n-{network}"
    others = [name for name in every_network(runs) if name not in COLOURED]
    return f"n-other{others.index(network) % SPARE_COLOURS}"


def rgb(colour: tuple[int, int, int] | None) -> str | None:
    """Formats a colour for CSS."""
    return "rgb({}, {}, {})".format(*map(int, colour)) if colour else None


def three_digits(value: float) -> str:
    """Formats a number with three significant digits: 1750, 12.5, 0.0312."""
    return f"{float(f'{value:.3g}'):.12g}"


def score(value: float | None, digits: int = 4) -> str:
    return tables.NO_VALUE if value is None or math.isnan(value) else f"{value:.{digits}f}"
