"""Configs: every file is complete and valid; every mistake is refused before training starts, with the name of the field."""

import importlib
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from configs import default
from hfd_jax.core.errors import ConfigError
from hfd_jax.core.seeds import word
from hfd_jax.data.pipeline import Pool, Ref, batch_refs
from hfd_jax.train import build
from hfd_jax.train.config_flags import field_names, unknown_field
from hfd_jax.train.networks import networks_to_train, student_spec
from hfd_jax.train.state import initial_key
from hfd_jax.train.validate import check_against_data, check_fields
from tests.conftest import ROOT, run_python

CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem != "__init__")


@pytest.fixture
def config():
    return default.get_config()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_valid_has_only_known_fields_and_shows_its_command(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    check_fields(config)
    assert field_names(config) == field_names(default.get_config())
    assert "main.py --config=configs/" in module.__doc__


def test_every_field_of_the_default_has_a_comment():
    lines = Path(default.__file__).read_text().splitlines()
    for number, line in enumerate(lines):
        if (
            " = " in line
            and "ConfigDict()" not in line
            and not line.strip().startswith("#")
            and line.startswith("    ")
        ):
            above = lines[number - 1].strip()
            # A comment on the line, above it, or above the pair of lines it belongs to.
            assert "#" in line or above.startswith("#") or lines[number - 2].strip().startswith("#"), line


def set_field(config, field, value):
    *parents, last = field.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = value


def get_field(config, field):
    for part in field.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "distill.hfd.tap_weights",
            ("1", "1"),
            r"config.distill.hfd.tap_weights is \('1', '1'\): expected numbers",
        ),
        ("stage", "teachers", "config.stage is 'teachers': did you mean 'teacher'"),
        ("parallel", "pjit", "config.parallel is 'pjit': .*expected one of: jit, pmap"),
        ("dtype", "float16", "config.dtype is 'float16': .*float32, bfloat16"),
        ("baselines", ("sar",), "config.baselines is .*'sar' is unknown"),
        ("model.depth", 20, "config.model.depth is 20: .*18, 34, 50, 101"),
        ("distill.method", ("hdf",), "config.distill.method is .*'hdf' is unknown; did you mean 'hfd'"),
        ("distill.method", ("kd", "kd"), "config.distill.method is .*a method is named twice"),
        ("distill.hfd.taps", ("C3", "B"), "config.distill.hfd.taps is .*'B' is unknown.*C2, C3, C4, C5, A"),
        ("distill.hfd.taps", ("logits",), "config.distill.hfd.taps is .*'logits' is unknown"),
        ("distill.cwd.taps", ("logits", "A"), None),
        ("distill.cirkd.tap", "B", "config.distill.cirkd.tap is 'B': 'B' is unknown"),
        ("distill.hfd.taps", (), "config.distill.hfd.taps is .*at least one tap"),
        ("distill.hfd.tap_weights", (1.0,), "config.distill.hfd.tap_weights is .*expected 4 weights"),
        ("distill.hfd.weight", 0.0, "config.distill.hfd.weight is 0.0: expected more than 0"),
        ("distill.kd.weight", 0.0, None),
        ("distill.kd.temperature", 0.0, "config.distill.kd.temperature is 0.0: expected more than 0"),
        ("distill.mgd.masked", 1.0, "config.distill.mgd.masked is 1.0: expected a share below 1"),
        (
            "data.crop",
            100,
            "config.data.crop is 100: expected a multiple of the network's stride 32; nearest: 96 or 128",
        ),
        ("data.batch_size", 12, "config.data.batch_size is 12: expected a multiple of the 8 devices; nearest: 8 or 16"),
        ("eval.batch_size", 3, "config.eval.batch_size is 3: .*nearest: 8"),
        ("data.label_share", 0.0, "config.data.label_share is 0.0: at least some labels"),
        ("data.label_share", 1.5, "config.data.label_share is 1.5: expected a share"),
        ("loss.ce", 0.0, None),
        ("train.eval_every", 30, "config.train.eval_every is 30: expected a multiple of train.checkpoint_every"),
        ("data.scenes.incidence", 90.0, "config.data.scenes.incidence is 90.0; expected 15 to 75 degrees"),
        ("distill.hfd.taps", ("A", "A"), "config.distill.hfd.taps is .*a tap is named twice"),
        ("eval.split", "unlabelled", "config.eval.split is 'unlabelled': expected a split with labels"),
        ("normalise.sar_looks", 0.0, "config.normalise.sar_looks is 0.0: expected more than 0"),
        ("optim.schedule", "cosin", "config.optim.schedule is 'cosin': did you mean 'cosine'"),
    ],
)
def test_invalid_values_are_named(config, field, value, message):
    check_fields(config, devices=8)
    set_field(config, field, value)
    if message is None:
        check_fields(config, devices=8)
        return
    with pytest.raises(ConfigError, match=message):
        check_fields(config, devices=8)


@pytest.mark.parametrize(
    "field", ["baselines", "data.sar_bands", "data.eo_bands", "distill.method", "distill.hfd.taps", "model.rates"]
)
def test_a_string_in_place_of_a_tuple_is_refused(config, field):
    config.model.architecture, config.distill.hfd.taps = "deeplabv3plus", ("C3",)
    check_fields(config)
    values = config.to_dict()
    set_field(values, field, "VV")
    with pytest.raises(ConfigError, match=f"config.{field} is 'VV': expected a tuple"):
        check_fields(ConfigDict(values))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_every_number_is_finite(config, value):
    for field in field_names(config):
        current = get_field(config, field)
        if isinstance(current, float):
            changed = value
        elif isinstance(current, tuple) and current and isinstance(current[0], float):
            changed = (value, *current[1:])
        else:
            continue
        wrong = default.get_config()
        set_field(wrong, field, changed)
        with pytest.raises(ConfigError, match=rf"config.{field} is .*(inf|nan).*: expected a finite number"):
            check_fields(wrong)


def test_the_width_of_a_student_is_checked_against_its_own_architecture(config):
    config.student.width = 32
    check_fields(config)
    config.student.architecture, config.distill.hfd.taps = "hrsarnet", ("C2", "C3", "A")
    with pytest.raises(ConfigError, match="config.student.width is 32: hrsarnet has no width"):
        check_fields(config)


@pytest.mark.parametrize("seed", [2**32 - 1, 2**32, 20261126022413, 2**64 + 1])
def test_seeds_have_any_size_and_all_their_bits_count(config, seed):
    config.seed = seed
    check_fields(config)
    one, other = (jax.random.key_data(initial_key(number, "sar")).tolist() for number in (seed, seed % 2**32))
    assert (one == other) == (seed < 2**32)
    pools = [
        Pool([Ref(split, place, split == "train") for place in range(20)], per_batch=8)
        for split in ("train", "unlabelled")
    ]
    other = seed % 2**32 if seed >= 2**32 else 0
    first, second = (batch_refs(pools, seed=number, step=3) for number in (seed, other))
    assert first != second and first == batch_refs(pools, seed=seed, step=3)
    assert word(7) == 7, "runs with small seeds keep their numbers"


def test_equally_similar_fields_prefer_the_depth_and_part_that_were_typed(config):
    # 'dtype' is as similar.
    assert unknown_field("normalise.dtype", config).endswith("does not exist: did you mean 'teacher.dtype'?")
    tied = ConfigDict({"a": {"b": {"rate": 1}, "c": {"rate": 1}}, "e": {"b": {"rate": 1}}})
    assert unknown_field("a.x.rate", tied).endswith("did you mean 'a.b.rate' or 'a.c.rate'?")


def test_no_loss_on_labels_at_all_is_refused(config):
    config.loss.ce = config.loss.dice = 0.0
    with pytest.raises(ConfigError, match="labels would teach nothing"):
        check_fields(config)


@pytest.mark.parametrize("field", ["eval.checkpoint", "teacher.which"])
def test_the_best_checkpoint_needs_validation(config, facts, field):
    set_field(config, field, "best")
    with pytest.raises(ConfigError, match=f"config.{field} is 'best': toy has no split 'validation'"):
        check_against_data(config, facts, ["train", "test"], (64, 64))
    check_fields(config)
    config.train.eval_every = 0
    with pytest.raises(ConfigError, match=f"config.{field} is 'best': .*train.eval_every"):
        check_fields(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.sar_bands", ("VW",), "config.data.sar_bands is .*toy has no sar band 'VW'; expected one of: VV, VH"),
        ("data.eo_bands", ("R", "R"), "config.data.eo_bands is .*named twice"),
        ("eval.split", "validation", "config.eval.split is 'validation': toy has no split"),
        ("data.crop", 96, "config.data.crop is 96: the largest training tile has 64 x 64 pixels"),
        ("train.eval_every", 200, "config.train.eval_every is 200: toy has no split 'validation'"),
    ],
)
def test_contradictions_with_the_data_are_named(config, facts, field, value, message):
    check_against_data(config, facts, ["train", "test"], (64, 64))
    set_field(config, field, value)
    with pytest.raises(ConfigError, match=message):
        check_against_data(config, facts, ["train", "test"], (64, 64))


def test_decibel_augmentation_needs_decibels(config, facts):
    import dataclasses

    config.augment.speckle_looks = 4.0
    with pytest.raises(ConfigError, match="config.augment.speckle_looks is 4.0: needs SAR in dB; toy is in 'raw'"):
        check_against_data(config, dataclasses.replace(facts, sar_unit="raw"), ["train", "test"], (64, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.log_evry=4"], "config.train.log_evry does not exist: did you mean 'train.log_every'"),
        (["--config.tain.log_every=4"], "config.tain.log_every does not exist: did you mean 'train.log_every'"),
        (
            ["--config.distill.tap_weights=(1,)"],
            "config.distill.tap_weights does not exist: .*'distill.hfd.tap_weights'",
        ),
        (
            ["--config.distill.hdf.weight=5"],
            "config.distill.hdf.weight does not exist: did you mean 'distill.hfd.weight'[?]$",
        ),
        (
            ["--config.distil.hfd.weight=5"],
            "config.distil.hfd.weight does not exist: did you mean 'distill.hfd.weight'[?]$",
        ),
        (["--config.learning_rate=1"], "config.learning_rate does not exist: did you mean 'optim.learning_rate'[?]$"),
        (["--config.optim.learning_rte=1"], "did you mean 'optim.learning_rate'[?]$"),
        (["--config.qqq=1"], "config.qqq does not exist: expected a field of augment, "),
        (
            ["--config.model.align=none", "--config.model.align_channels=abc"],
            "config.model.align_channels is 'abc': expected an integer",
        ),
        (["--config.train.remat=maybe"], "config.train.remat is 'maybe': expected True or False"),
        (["--config.data.crop=50"], "config.data.crop is 50: expected a multiple"),
        (["--config.data.sar_bands=('HH',)"], "config.data.sar_bands is .*scenes has no sar band 'HH'; .*VV, VH"),
        (["--config.data.sar_bands=VV"], r"config.data.sar_bands is 'VV': expected a tuple, \('VV',\)"),
        (["--config.data.eo_bands=R,G"], r"config.data.eo_bands is 'R,G': expected a tuple, \('R','G'\)"),
        (
            ["--config.baselines", "(sar_only)"],
            r"config.baselines is '\(sar_only\)': expected a tuple, \('sar_only',\)",
        ),
        (["--config.distill.hfd.taps='A'"], r"config.distill.hfd.taps is \"'A'\": expected a tuple, \('A',\)"),
        (["--config.model.rates=6"], r"config.model.rates is '6': expected a tuple, \(6,\)"),
        (["--config.data.name=folder/nope"], "data/folder/nope: no prepared data set"),
        (["--config.optim.learning_rate=fast"], "config.optim.learning_rate is 'fast': expected a number"),
    ],
)
def test_the_launcher_prints_one_line_and_writes_nothing(tmp_path, arguments, message):
    import re

    done = run_python("main.py", "--config=configs/scenes.py", f"--workdir={tmp_path / 'run'}", *arguments, check=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c = default.get_config()\n    c.distill.hfd.wieght = 7.0", 'Did you mean "weight" instead of "wieght"'),
        ("c = default.get_config()\n    c.teacher.steps = 'many'", "Could not override field 'steps'"),
        (
            "from ml_collections import ConfigDict\n    c = ConfigDict({'seed': 3})",
            r"config.augment.eo_gain is missing; let the config start",
        ),
        ("c = default.get_config()\n    c.unlock()\n    c.extra = 3", "config.extra does not exist"),
    ],
)
def test_mistakes_in_a_config_file_are_named(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(f"from configs import default\n\n\ndef get_config():\n    {text}\n    return c\n")
    done = run_python(
        "main.py",
        f"--config={tmp_path / 'mine.py'}",
        f"--workdir={tmp_path / 'run'}",
        check=False,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr and message in done.stderr, done.stderr


def test_help_shows_how_a_field_is_set_and_needs_no_jax():
    code = "import sys; sys.argv = ['main.py', '--help']; import runpy; runpy.run_path('main.py', run_name='__main__')"
    loaded = "import atexit; atexit.register(lambda: print('jax' in sys.modules)); "
    done = run_python("-c", f"import sys; {loaded}{code}")
    assert "--config=FILE" in done.stdout and "--config.distill.hfd.weight=5.0" in done.stdout
    assert len(done.stdout.splitlines()) < 15 and done.stdout.endswith("False\n")


def test_missing_config_file_is_named(tmp_path):
    done = run_python("main.py", "--config=configs/nope.py", f"--workdir={tmp_path / 'run'}", check=False)
    assert done.returncode == 1 and "error: --config=configs/nope.py: no such file" in done.stderr


def test_stages_and_baselines(config):
    config.baselines = ("sar_only", "teacher_init")
    assert [run.name for run in networks_to_train(config)] == ["teacher", "sar_only", "teacher_init", "student"]
    config.stage = "student"
    assert [run.name for run in networks_to_train(config)] == ["sar_only", "teacher_init", "student"]
    config.stage, config.teacher.checkpoint = "all", "elsewhere"
    assert "teacher" not in [run.name for run in networks_to_train(config)]
    config.distill.method = ()
    assert not student_spec(config).distils


@pytest.mark.parametrize(
    ("methods", "title"),
    [
        (("hfd",), "HFD student (SAR)"),
        (("cwd",), "CWD student (SAR)"),
        (("hfd", "kd"), "HFD + KD student (SAR)"),
        ((), "student without distillation (SAR)"),
    ],
)
def test_the_student_is_called_after_its_methods(config, methods, title):
    config.distill.method = methods
    assert student_spec(config).title == title


def test_class_weights_have_mean_one_over_present_classes():
    weights = build.class_weights((100, 400, 0))
    assert weights[2] == 0 and weights[0] == pytest.approx(2 * weights[1])
    assert (weights[0] + weights[1]) / 2 == pytest.approx(1)
