"""Tests of the report, on hand-written run files and untrained networks."""

import html.parser
import json
import re
import shutil

import jax
import numpy as np
import optax
import pytest

from configs import default
from hfd_jax.core.checkpoint import Checkpoints
from hfd_jax.core.errors import UserError, WorkdirError
from hfd_jax.core.parallel import Jit
from hfd_jax.core.workdir import Workdir, claim, completed, jsonable
from hfd_jax.evaluation.metrics import scores
from hfd_jax.experiments.report import curves, survey, tables
from hfd_jax.experiments.report.records import read_run, short_names
from hfd_jax.experiments.report.similarity import linear_cka, moments
from hfd_jax.train import build
from hfd_jax.train.networks import networks_to_train
from hfd_jax.train.state import init_fn, initial_key
from tools import report

STEP = 6
TITLES = {"teacher": "teacher (EO)", "sar_only": "SAR-only student", "student": "HFD student (SAR)"}
DEFAULTS = jsonable(default.get_config().to_dict())
VOID = {"meta", "img", "br", "link"}


def small_config(data_dir):
    config = default.get_config()
    config.baselines = ("sar_only",)
    config.data.dir = data_dir
    config.data.scenes.train, config.data.scenes.validation, config.data.scenes.test = 24, 6, 10
    config.model.width = 4
    config.teacher.steps = config.student.steps = STEP
    config.eval.batch_size = 5  # on one of the eight devices, whose number does not divide it
    return config


def line(network, step, **values):
    return {
        "network": network,
        "step": step,
        "loss": 2.0 / step,
        "ce": 1.0 / step,
        "share_ce": 0.5,
        "skipped": 0,
    } | values


def log_of(networks):
    lines = [line(name, step, learning_rate=1e-3 * step) for name in networks for step in range(1, STEP + 1)]
    for row in lines:
        if row["network"] == "student":
            row |= {
                "hfd": 3.0,
                "share_hfd": 0.4,
                "hfd_C3": 1.5,
                "hfd_A": 0.1 * row["step"],
                "gram": 2.0,
                "gram_C5": 0.1,
            }
    fault = {"step": 3, "terms": ["ce"], "tiles": ["tile_of_the_fault"]}
    return [*lines, line("student", STEP, ce=float("nan"), skipped=1, faults=[fault])]


def write_files(root, config, log, evaluation):
    workdir = Workdir(str(root))
    claim(workdir, config)
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    if evaluation:
        (root / "evaluation.json").write_text(json.dumps({"test": evaluation}))
    return workdir


def evaluated(class_names, networks=TITLES):
    """Returns rows of evaluation.json; each network confuses less than the previous one; the last class is absent."""
    rows = {}
    for number, name in enumerate(("sar_only", "student", "teacher")):
        if name in networks:
            matrix = np.ones((len(class_names),) * 2, int) + np.eye(len(class_names), dtype=int) * 10 * (number + 1)
            matrix[-1], matrix[:, -1] = 0, 0
            rows[name] = {"title": TITLES[name], "step": STEP, **scores(matrix, class_names).to_dict()}
    return rows


def one_device():
    return Jit(jax.devices()[:1])


def save_checkpoint(workdir, config, dataset, run):
    """Saves the untrained student; other networks get random numbers, which need no compilation."""
    model = build.make_model(config, run, len(dataset.facts.class_names))
    bands = len(getattr(dataset.facts, f"{run.sensor}_bands"))
    if run.name == "student":
        init = init_fn(model, optax.identity(), bands)
        variables = one_device().init(lambda key: init(key).model_variables, initial_key(config.seed, run.sensor))
    else:
        shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, bands), "float32"))
        rng = np.random.default_rng(len(run.name))
        variables = jax.tree.map(lambda x: rng.normal(1 if len(x.shape) == 1 else 0, 0.1, x.shape).astype("f"), shapes)
    state = {collection: {"model": variables[collection]} for collection in ("params", "batch_stats")}
    inputs = build.make_inputs(config, dataset.facts, dataset.statistics)
    checkpoints = Checkpoints(workdir.checkpoints(run.name))
    checkpoints.save(STEP, state, build.make_record(config, run, dataset, inputs, {}))
    checkpoints.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scenes, scenes_dir):
    """The workdir of a run with three networks, a log and scores."""
    root = tmp_path_factory.mktemp("report") / "first"
    config = small_config(scenes_dir)
    workdir = write_files(root, config, log_of(TITLES), evaluated(scenes.facts.class_names))
    for run in networks_to_train(config):
        save_checkpoint(workdir, config, scenes, run)
    timing = {"network": "student", "step": STEP, "steps_per_second": 12.5, "devices": "1 x cpu"}
    (root / "timing.jsonl").write_text(json.dumps(timing) + "\n")
    return root


@pytest.fixture(scope="module")
def page_text(finished, tmp_path_factory):
    """The page about the finished run and an unfinished one whose data is missing."""
    other = tmp_path_factory.mktemp("report") / "second"
    config = small_config(str(other / "nowhere"))
    config.distill.hfd.weight, config.seed = 2.5, 7
    log = [line("teacher", step) for step in (1, 2)]
    log[1]["faults"] = [{"step": 2, "terms": ["<b>ce</b>"], "tiles": ["<script>alert(2)</script>"]}]
    write_files(other, config, log, evaluated(("land", "<script>alert(1)</script>", "none"), ["teacher"]))
    with open(other / "metrics.jsonl", "a") as file:
        file.write('{"network": "teacher", "st')  # an incomplete line from a killed run
    output = other / "page.html"
    arguments = report.make_parser().parse_args(
        [f"--workdir={finished}", str(other), f"--output={output}", "--tiles=2"]
    )
    report.main(arguments)
    return output.read_text(encoding="utf-8")


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced; collects references and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.tags, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another one, at {self.getpos()}"
        self.text += " " if tag == "td" else ""

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else_and_is_well_formed(page_text):
    page = Page(page_text)
    assert page.open == [] and page.tags.count("img") == 2 * 2 * (3 + 2 * 3)
    assert page.references and all(re.match(r"#|data:image/(png|jpeg);base64,", each) for each in page.references)
    assert not re.search(r"https?:|@import|url\(", page_text)
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert len(page_text.encode()) < 500_000


def test_text_from_files_is_escaped(page_text):
    text = Page(page_text).text
    assert "<script>alert(1)</script>" in text and "<script>alert(2)</script>" in text and "<b>ce</b>" in text
    assert "<script" not in page_text


def test_every_quantity_of_the_log_is_drawn(page_text, finished):
    names = {key for row in log_of(TITLES) for key in row} - {"network", "step", "faults"}
    for name in names:
        assert f"<code>{name}</code>" in page_text, name
    run = read_run(str(finished), "first", DEFAULTS, None)
    drawn = {chart.name: chart for group in curves.learning_curves([run]) for chart in group.charts}
    assert set(drawn) == names
    assert [one.network for one in drawn["hfd"].lines] == ["student"]
    assert [one.network for one in drawn["ce"].lines] == ["teacher", "sar_only", "student"]
    assert all(one.points.count(",") == STEP for one in drawn["ce"].lines), "what is not finite is no point"
    groups = {group.title: [chart.name for chart in group.charts] for group in curves.learning_curves([run])}
    assert groups["Distillation per tap, unweighted"] == ["hfd_C3", "hfd_A", "gram_C5"]
    assert groups["Loss terms, weighted"] == ["loss", "ce", "hfd", "gram"]


def test_the_axis_of_a_share_starts_at_zero(finished):
    run = read_run(str(finished), "first", DEFAULTS, None)
    series = curves._Series(run, "student", "", np.array([1.0, 2.0]), np.array([0.001, 0.96]))
    shares, losses = (curves.chart(name, [series], 2) for name in ("share_hfd", "hfd"))
    assert losses.logarithmic and not shares.logarithmic
    assert {"0", "1"} <= {text for _, text in shares.y_ticks}


def test_the_page_shows_scores_and_gain_and_names_what_is_missing(page_text, scenes):
    text = " ".join(Page(page_text).text.split())
    for words in (*scenes.facts.class_names, *TITLES.values(), "student before training (seed 0)"):
        assert words in text
    # IoU of k + 1 against the classes that confuse with it: (11, 21, 31) / (11, 21, 31) + 6), see `evaluated`.
    reference, student, teacher = (hit / (hit + 6) for hit in (11, 21, 31))
    assert f"{student:.4f}" in text and f"{student - reference:+.4f}" in text
    assert f"{100 * (student - reference) / (teacher - reference):.0f} %" in text
    assert "first: HFD student (SAR): neither labelled nor predicted" in text and "buildings" in text
    for sentence in (
        "teacher (EO): 2 of 6 steps trained.",
        "HFD student (SAR): not trained.",
        "Unreadable lines of metrics.jsonl, left out: 1.",
        "the prepared data cannot be opened",
        "No scores on split test: SAR-only student, HFD student (SAR).",
        "12.5",
        "tile_of_the_fault",
    ):
        assert sentence in text, sentence


def test_two_runs_show_what_differs(page_text):
    part = page_text[page_text.index('<section id="differs">') :]
    part = Page(part[: part.index("</section>") + len("</section>")]).text.split()
    assert part[part.index("distill.hfd.weight") :][:3] == ["distill.hfd.weight", "2.0", "2.5"]
    assert part[part.index("seed") :][:3] == ["seed", "0", "7"]
    assert "optim.learning_rate" not in part


@pytest.fixture(scope="module")
def surveyed(finished):
    """(run, survey) over the validation split, which has no stored scores."""
    run = read_run(str(finished), "first", DEFAULTS, "validation")
    return run, survey.make_survey(run, None, count=6, limit=0, parallel=one_device())


def test_tiles_are_scored_one_by_one_and_ranked(surveyed, scenes):
    run, found = surveyed
    tiles = [*found.worst, *reversed(found.best)]
    shown = [tile["position"] for tile in tiles]
    assert sorted(shown) == list(range(6)), "no tile is both among the best and the worst"
    for tile in tiles:
        expected = np.zeros((5, 5), int)
        np.add.at(expected, (tile["label"], tile["student"]), 1)
        np.testing.assert_array_equal(found.confusion["student"][tile["position"]], expected)
        assert tile["id"] == scenes.tile_ids([("validation", tile["position"])])[0]
    student = found.tile_scores("student")
    assert np.all(np.diff(student[shown]) >= 0)
    shared = survey.open_run(run, None, one_device())
    network = survey.load_networks(run, shared)["student"]
    evaluator = shared.evaluator("validation")
    apart = evaluator(network.model, network.inputs, network.sensor, network.variables)
    np.testing.assert_array_equal(found.split_scores()["student"].scores.matrix, apart.matrix)
    assert found.throughput.megapixels > 0 and found.throughput.batch == (5, 64, 64)


def test_the_untrained_network_is_the_one_the_run_started_from(surveyed):
    """The student of this run was saved untrained, so its features equal those of the network before training."""
    similarity = surveyed[1].similarity
    assert set(similarity) == {survey.UNTRAINED, "sar_only", "student"}
    assert similarity[survey.UNTRAINED] == similarity["student"] != similarity["sar_only"]
    assert all(0 < value < 1 for value in similarity["student"].values())
    assert surveyed[1].positions == {
        "C2": 6 * 256,
        "C3": 6 * 64,
        "C4": 6 * 16,
        "C5": 6 * 4,
        "P": 6 * 256,
        "A": 6 * 4096,
    }


def test_ties_and_tiles_without_labels():
    assert survey.ranking(np.array([0.5, np.nan, 0.2, 0.5, 0.2])) == [2, 4, 0, 3]
    assert (
        survey.evenly_spaced(10, 0) == list(range(10))
        and survey.evenly_spaced(10, 3) == [0, 4, 9]
        and survey.evenly_spaced(2, 5) == [0, 1]
    )


def direct_cka(x, y):
    """Computes CKA from Gram matrices, as the paper defines it: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    centring = np.eye(len(x)) - 1 / len(x)
    k, l = (centring @ (f @ f.T) @ centring for f in (x, y))  # noqa: E741 - the paper's letters
    return np.sum(k * l) / np.sqrt(np.sum(k * k) * np.sum(l * l))


def test_cka_equals_the_papers_definition_over_the_valid_positions(rng):
    x, y = rng.normal(size=(2, 8, 4, 5)) + 3, rng.normal(size=(2, 8, 4, 3))
    y[..., 0] += x[..., 0]
    valid = np.repeat(np.repeat(rng.random((2, 8, 4)) < 0.6, 4, 1), 4, 2)
    parts = [moments(x[k : k + 1], y[k : k + 1], valid[k : k + 1]) for k in (0, 1)]
    seen = valid[:, ::4, ::4]
    both = jax.tree.map(lambda *leaves: sum(np.asarray(leaf, np.float64) for leaf in leaves), *parts)
    assert both["count"].sum() == seen.sum()
    # float32 sums of some 40 positions.
    assert linear_cka(both) == pytest.approx(direct_cka(x[seen], y[seen]), abs=1e-5)
    count = np.maximum(seen.sum(0), 1)[..., None]
    apart = [(f - (f * seen[..., None]).sum(0) / count)[seen] for f in (x, y)]
    assert linear_cka(both, each_position=True) == pytest.approx(direct_cka(*apart), abs=1e-5)


def test_cka_is_invariant_to_rotation_scale_and_offset(rng):
    x = rng.normal(size=(1, 64, 64, 4)) * [1, 2, 3, 4] + 5
    everywhere = np.ones((1, 64, 64), bool)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert linear_cka(moments(x, x, everywhere)) == pytest.approx(1, abs=1e-5)
    assert linear_cka(moments(x, 7 * x @ rotation - 2, everywhere)) == pytest.approx(1, abs=1e-4)
    # Of N independent positions the expectation is about C / N = 0.001.
    assert linear_cka(moments(x, rng.normal(size=x.shape), everywhere)) < 0.01
    assert np.isnan(linear_cka(moments(x, np.full_like(x, 0.3), everywhere)))


def test_centring_each_position_removes_what_all_tiles_share(rng):
    pattern = 10 * rng.normal(size=(4, 4, 3))
    x, y = (pattern + rng.normal(size=(400, 4, 4, 3)) for _ in "xy")
    sums = moments(x, y, np.ones((400, 4, 4), bool))
    assert linear_cka(sums) > 0.95 and linear_cka(sums, each_position=True) < 0.01


def test_a_folder_without_a_run_is_refused(tmp_path, finished, scenes_dir):
    with pytest.raises(WorkdirError, match="nowhere: no such folder; expected the --workdir of a main.py run"):
        read_run(str(tmp_path / "nowhere"), "x", DEFAULTS, None)
    with pytest.raises(WorkdirError, match=r"config.json: missing; is .* the workdir of a run"):
        read_run(str(tmp_path), "x", DEFAULTS, None)
    claim(Workdir(str(tmp_path)), small_config(scenes_dir))
    with pytest.raises(WorkdirError, match=r"metrics.jsonl: missing; no step has been logged"):
        read_run(str(tmp_path), "x", DEFAULTS, None)
    with pytest.raises(WorkdirError, match="--workdir contains the same folder twice"):
        short_names([str(finished), str(finished) + "/"])
    assert short_names(["a/x/1", "b/x/1", "b/x/2"]) == ["a/x/1", "b/x/1", "b/x/2"]
    assert short_names(["runs/one", "runs/two/"]) == ["one", "two"]


def test_a_missing_checkpoint_is_named_and_the_others_are_shown(finished, tmp_path, scenes_dir):
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    shutil.rmtree(root / "checkpoints" / "sar_only")
    (root / "checkpoints" / "teacher" / str(STEP) / "record" / "metadata").unlink()
    run = read_run(str(root), "copy", DEFAULTS, None)
    networks = survey.load_networks(run, survey.open_run(run, None, one_device()))
    assert list(networks) == ["student"]
    assert any("SAR-only student: no checkpoint" in remark for remark in run.remarks)
    assert any("teacher (EO): excluded from tiles and similarity." in remark for remark in run.remarks)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output=nowhere/page.html"], "nowhere/page.html: cannot be written, the folder does not exist"),
        (["--tiles=-1"], "--tiles=-1: expected 0 or more"),
        (["--split=tset"], r"no split 'tset'; did you mean 'test'"),
    ],
)
def test_invalid_flags_are_refused_before_the_survey(finished, flags, message):
    with pytest.raises(UserError, match=message):
        report.main(report.make_parser().parse_args([f"--workdir={finished}", *flags]))
    assert not (finished / "report.html").exists()


def test_an_older_config_gets_the_defaults_of_newer_fields():
    assert completed({"a": {"b": 5}, "e": 6}, {"a": {"b": 1, "c": 2}, "d": 3}) == {
        "a": {"b": 5, "c": 2},
        "d": 3,
        "e": 6,
    }
    assert tables.changed_fields({"a": {"b": 1}}, {"a": {"b": 2}, "x": []}) == [
        ("a.b", "1", "2"),
        ("x", "\N{EN DASH}", "()"),
    ]


def test_axes():
    position, ticks = curves.axis(0.0, 0.0, 10, 20)
    assert position(0.0) == 15 and ticks
    position, ticks = curves.log_axis(0.01, 100.0, 100, 0)
    assert [text for _, text in ticks] == ["0.01", "0.1", "1", "10", "100"] and position(1.0) == pytest.approx(50)
    assert [curves.number(value) for value in (0, 0.002, 2500, 1e-5, 2e7)] == ["0", "0.002", "2.5k", "1e-05", "2e+07"]
    assert len(curves.thinned(np.arange(1000.0))) == curves.MAX_POINTS
