"""Tests of stored results: reading back, pages, pooling over folds, and the tables of the documents."""

import dataclasses
import importlib

import numpy as np
import pytest
from scipy import stats

from configs import default
from hfd_jax.core.errors import ConfigError, WorkdirError
from hfd_jax.experiments import figure, statistics, stored, tables
from hfd_jax.experiments import sweep as sweeps
from hfd_jax.experiments.pooling import pooled
from hfd_jax.experiments.report import sweep_page
from tests.conftest import ROOT
from tests.sweeps import result, some_sweep
from tools import compare
from tools import results as documents

FOLDS = ({"SAR-only": (0.40, 0.50), "HFD": (0.50, 0.50)}, {"SAR-only": (0.60, 0.60), "HFD": (0.60, 0.62)})


def stored_results(scores, **changes):
    """Results of a sweep: row -> mIoU of seeds 0, 1, ..."""
    runs = {row: {seed: result(value) for seed, value in enumerate(values)} for row, values in scores.items()}
    found = stored.Stored(some_sweep({row: {} for row in scores}), "python x", "test", runs, {}, {}, {"jax": "1"})
    return dataclasses.replace(found, **changes)


def test_results_read_back_and_make_a_page(tmp_path):
    results = {
        row: {seed: result(value + 0.01 * seed) for seed in (0, 1)} for row, value in (("SAR-only", 0.5), ("HFD", 0.6))
    }
    sweep_of = some_sweep({row: {} for row in results})
    found = stored.Stored(sweep_of, "python -m tools.compare --x", "test", results, {"HFD": 2.0}, {}, {"jax": "1"})
    path = str(tmp_path / "some.json")
    stored.write(path, found)
    again = stored.read(path)
    assert again.lines[1].mean_iou == found.lines[1].mean_iou and again.command == found.command
    tool = importlib.import_module("tools.report")
    tool.main(tool.make_parser().parse_args([f"--sweep={path}"]))
    page = (tmp_path / "some.html").read_text()
    assert "0.605" in page and "tools.compare --x" in page and "data:image/png" in page
    with pytest.raises(ConfigError, match="either --workdir .* or --sweep"):
        tool.main(tool.make_parser().parse_args([]))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(WorkdirError, match="other.json: not a results file of tools.compare"):
        stored.read(str(tmp_path / "other.json"))


def test_a_fold_counts_once_however_many_seeds_it_has():
    """The interval is that of the two folds' differences, 0.05 and 0.01, not of four runs."""
    found = pooled([stored_results(scores) for scores in FOLDS])
    line = found.lines[1]
    assert line.row == "HFD" and line.seeds == 2 and found.unit == "fold"
    assert line.mean_iou == pytest.approx((0.5 + 0.61) / 2)
    assert line.gain == pytest.approx(0.03)
    assert line.gain_half_width == pytest.approx(stats.t.ppf(0.975, 1) * np.std([0.05, 0.01], ddof=1) / np.sqrt(2))
    assert "folds" in tables.score_table(found.lines, found.unit)


def test_pooling_uses_the_seeds_that_all_rows_of_a_fold_have():
    few = {"SAR-only": (0.4, 0.5), "HFD": (0.5,)}
    found = pooled([stored_results(few), stored_results(FOLDS[1])])
    assert found.results["SAR-only"][0].mean_iou == 0.4, "seed 1 has no HFD"


def test_only_results_of_one_sweep_are_pooled(tmp_path):
    one = stored_results(FOLDS[0])
    with pytest.raises(ConfigError, match="results of different splits cannot be pooled: test; validation"):
        pooled([one, stored_results(FOLDS[1], split="validation")])
    with pytest.raises(ConfigError, match="results of different rows cannot be pooled"):
        pooled([one, stored_results({"SAR-only": (0.5,)})])
    apart = dataclasses.replace(one, results={"SAR-only": {0: result(0.5)}, "HFD": {1: result(0.5)}})
    with pytest.raises(ConfigError, match="no seed has a result in every row"):
        pooled([apart, apart])
    assert pooled([one]) is one


def test_a_page_about_folds(tmp_path):
    paths = [str(tmp_path / f"{fold}.json") for fold in range(len(FOLDS))]
    for path, scores in zip(paths, FOLDS, strict=True):
        stored.write(path, stored_results(scores))
    tool = importlib.import_module("tools.report")
    tool.main(tool.make_parser().parse_args(["--sweep", *paths, f"--output={tmp_path / 'page.html'}"]))
    page = (tmp_path / "page.html").read_text()
    assert "2\n    folds" in page and "mIoU per fold" in page


def test_the_teacher_of_a_curve_is_no_student(tmp_path):
    """It reads optical images, so it is neither the best student nor compared in speed."""
    rows = {"teacher @ 1 %": {"stage": "teacher"}, "SAR-only @ 1 %": {}, "HFD @ 1 %": {}}
    runs = {row: {0: result(value)} for row, value in zip(rows, (0.9, 0.5, 0.6), strict=True)}
    sweep = dataclasses.replace(some_sweep({}), rows=rows, axis="data.label_share")
    places, speed = dict.fromkeys(rows, 0.01), {"teacher @ 1 %": 1.0, "SAR-only @ 1 %": 2.0, "HFD @ 1 %": 2.0}
    found = stored.Stored(sweep, "python x", "test", runs, speed, places, {})
    assert "mIoU of HFD @ 1 %, the highest without optical input" in sweep_page.render(found)
    assert figure.speeds(found.lines, sweep) is None, "the students are equally fast"


def test_documents_quote_only_stored_figures(tmp_path, monkeypatch):
    stored.write(str(tmp_path / "some.json"), stored_results(FOLDS[0]))
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    text = "<!-- results some -->\nold\n<!-- results end -->\nHFD has 0.500 where SAR-only has 0.450: 5.0 points.\n"
    filled = documents.filled(text)
    assert "| HFD" in filled and "old" not in filled and documents.filled(filled) == filled
    known = documents.supported([filled])
    assert documents.unsupported(filled, known) == []
    more = "Nobody measured 0.987, or 7.5 points; `0.003` is code."
    assert documents.unsupported(filled + more, known) == ["0.987", "7.5"]


def test_the_documents_hold_what_was_measured():
    """`python -m tools.results --update` writes their tables; every figure of their text stands in docs/results/."""
    texts = [document.read_text() for document in documents.DOCUMENTS]
    assert [documents.filled(text) for text in texts] == texts
    known = documents.supported(texts)
    assert [figure for text in texts for figure in documents.unsupported(text, known)] == []
    quoted = {name for text in texts for found in documents.TABLE.finditer(text) for name in found[3].split()}
    stored_files = {
        str(path.relative_to(documents.RESULTS).with_suffix("")) for path in documents.RESULTS.rglob("*.json")
    }
    assert quoted == stored_files, "no result is kept back"


def test_a_choice_takes_the_row_that_is_better_on_the_validation_split():
    results = {
        "SAR-only @ 1 %": {0: result(0.5, validation=0.6), 1: result(0.5, validation=0.4), 2: result(0.5)},
        "HFD @ 1 %": {0: result(0.7, validation=0.5), 1: result(0.3, validation=0.5), 2: result(0.6, validation=0.9)},
        "teacher @ 1 %": {0: result(0.9)},
    }
    choices = {"either": ("SAR-only", "HFD"), "absent": ("SAR-only", "nothing")}
    sweep = dataclasses.replace(some_sweep({}), axis="data.label_share", choices=choices)
    found = statistics.with_choices(results, sweep)
    chosen = found.pop("either @ 1 %")
    assert found == results and {seed: run.mean_iou for seed, run in chosen.items()} == {0: 0.5, 1: 0.3}, (
        "whatever they score on the test split; without a validation score there is no choice"
    )


def test_a_choice_may_be_the_reference():
    found = sweeps.read_sweep(str(ROOT / "configs" / "sweeps" / "steps.py"))
    assert found.reference in found.choices and found.floor == found.reference
    short = {"HFD student, 300 steps": {0: result(0.6, validation=0.6)}}
    alone = {f"SAR-only student, {steps} steps": {0: result(0.4, validation=steps / 1e4)} for steps in (300, 600, 1200)}
    lines = statistics.lines_of(statistics.with_choices(short | alone, found), found, {})
    assert {line.row: line.gain for line in lines}["HFD student, 300 steps"] == pytest.approx(0.2)
    some = sweeps.reduced(found, ["HFD student, steps by validation"])
    assert set(some.rows) == set(found.rows) - {"teacher (EO)"}, "a choice needs all of its rows"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"either": ()}, r"CHOICES\['either'\] is \(\); expected some of the rows or curves A, B"),
        ({"either": ("A", "C")}, "expected some of the rows or curves A, B"),
        ({"A": ("A", "B")}, "CHOICES has 'A', which is the name of a row or curve"),
        ([("either", ("A", "B"))], 'expected {"name": '),
    ],
)
def test_wrong_choices_are_named(tmp_path, choices, message):
    text = f'CONFIG = "c"\nREFERENCE = "A"\nROWS = {{"A": {{}}, "B": {{}}}}\nCHOICES = {choices!r}\n'
    (tmp_path / "some.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        sweeps.read_sweep(str(tmp_path / "some.py"))


def test_a_reference_that_nothing_can_choose_is_refused_before_training():
    found = sweeps.read_sweep(str(ROOT / "configs" / "sweeps" / "steps.py"))
    config = default.get_config()
    with pytest.raises(ConfigError, match="REFERENCE is 'SAR-only student, steps by validation', which is chosen on"):
        compare.check_choices(found, config)
    config.eval.checkpoint = "best"
    compare.check_choices(found, config)
    some = sweeps.read_sweep(str(ROOT / "configs" / "sweeps" / "ombria.py"))
    rows = sweeps.reduced(some, ["better on validation @ 10 %"]).rows
    assert list(rows) == ["SAR-only @ 10 %", "HFD @ 10 %"], "a choice at a point needs its rows there"


def test_points_of_a_curve_become_columns():
    rows = {"SAR-only @ 1 %": (0.3,), "HFD @ 1 %": (0.4,), "SAR-only @ 10 %": (0.5,), "HFD @ 10 %": (0.55,)}
    found = stored_results(rows)
    found = dataclasses.replace(found, sweep=dataclasses.replace(found.sweep, axis="data.label_share"))
    table = tables.curve_table(found.lines, found.sweep)
    assert list(table) == ["label share", "SAR-only", "HFD", "HFD - SAR-only"]
    assert table.iloc[1].tolist() == ["10 %", "0.500", "0.550", "+0.050"]
