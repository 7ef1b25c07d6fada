"""The documents: links lead somewhere, commands parse, examples work, named tests and files exist."""

import functools
import importlib
import json
import re
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from absl import flags
from ml_collections import config_flags
from rasterio.transform import from_origin

from configs import default
from hfd_jax.core.errors import UserError
from hfd_jax.data.catalogue import find_dataset
from hfd_jax.experiments.sweep import read_sweep
from hfd_jax.train.config_flags import field_names, unknown_field
from hfd_jax.train.validate import check_against_data, check_fields
from tests.conftest import ROOT

README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
FIGURES = ROOT / "docs" / "figures"
# Its commands and files are those of the code that the page adds; a test of its own follows it.
EXTENDING = ROOT / "docs" / "extending.md"
TRAINING_TOOLS = ("tools.compare", "tools.benchmark")  # those that take --config


def name_of(path):
    return str(Path(path).relative_to(ROOT))


each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


@functools.cache
def blocks(document):
    """[(language, text)] of the fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.M | re.S)


@functools.cache
def prose(document):
    """The text without its fenced blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", document.read_text(), flags=re.M | re.S)


def first_block(document, language, containing=""):
    return next(text for found, text in blocks(document) if found == language and containing in text)


def commands(document):
    """Every shell command as a list of words; continued lines are joined."""
    shell = "\n".join(text for language, text in blocks(document) if language == "bash")
    lines = shell.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def python_commands(words):
    """What follows `python` in a command, also inside a quoted one (--command="... python main.py ...")."""
    found = []
    for place, word in enumerate(words):
        if word == "python":
            found.append(words[place + 1 :])
        elif "python " in word:
            found += python_commands(shlex.split(word))
    return found


def all_python_commands():
    return [
        pytest.param(rest, id=f"{name_of(document)}: {' '.join(rest)[:70]}")
        for document in DOCUMENTS
        if document != EXTENDING
        for words in commands(document)
        for rest in python_commands(words)
    ]


def anchors(document):
    """The anchors of a document's headings, formed as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(document):
    found = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", prose(document))
    return [link for link in found if not link.startswith(("http://", "https://", "mailto:"))]


def parsed_config(words, monkeypatch):
    """The config that --config=FILE and the overrides among `words` give."""
    argv = ["main.py", *(word for word in words if word.startswith("--config"))]
    values = flags.FlagValues()
    flag = config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values)
    monkeypatch.setattr(sys, "argv", argv)  # ml_collections looks for overrides there
    monkeypatch.chdir(ROOT)
    with warnings.catch_warnings():  # ml_collections loads the file with load_module()
        warnings.simplefilter("ignore", DeprecationWarning)
        values(argv)
    return flag.value


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


@each_document
def test_links_lead_somewhere(document):
    broken = []
    for link in links(document):
        file, _, anchor = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@each_document
def test_named_files_exist(document):
    named = re.findall(r"`((?:hfd_jax|configs|tools|tests|docs)/[\w/.]+\.\w+)", document.read_text())
    assert document == EXTENDING or [name for name in named if not (ROOT / name).exists()] == []


def test_every_figure_is_shown():
    shown = {(document.parent / link).resolve() for document in DOCUMENTS for link in links(document)}
    assert [path.name for path in FIGURES.iterdir() if path.resolve() not in shown] == []


def test_named_tests_exist():
    named = 0
    for document in DOCUMENTS:
        file = ""
        for path, test in re.findall(r"`(tests/[\w/]+\.py)?::(test_\w+)`", document.read_text()):
            file = path or file
            assert f"def {test}(" in (ROOT / file).read_text(), f"{name_of(document)}: {file}::{test}"
            named += 1
    assert named > 30


@each_document
def test_nothing_is_left_open_and_no_path_is_absolute(document):
    text = document.read_text()
    assert not re.findall(r"@[A-Z0-9]+@|\bTODO\b|\bXXX\b", text)
    assert not re.findall(r"(?:^|[\s\"'(=`])/\w[\w/.-]*", text, re.M)


@each_document
def test_examples_in_python_and_json_are_valid(document):
    for language, text in blocks(document):
        if language == "python":
            compile(text, name_of(document), "exec")
        if language == "json":
            json.loads(text)


@pytest.mark.parametrize("words", all_python_commands())
def test_every_command_parses(words, monkeypatch, capsys):
    """Arguments, choices, config files and config fields; nothing runs."""
    if words[0] == "-m":
        parser = importlib.import_module(words[1]).make_parser()
        try:
            arguments, rest = parser.parse_known_args(words[2:])
        except SystemExit:
            pytest.fail(capsys.readouterr().err)
        assert [word for word in rest if not word.startswith("--config")] == []
        if words[1] == "tools.compare" and not any(word.startswith("--config=") for word in rest):
            rest.insert(0, f"--config={read_sweep(str(ROOT / arguments.sweep)).config}")
        assert not rest or words[1] in TRAINING_TOOLS
    else:
        assert words[0] == "main.py" and any(word.startswith("--workdir=") for word in words)
        rest = [word for word in words[1:] if not word.startswith("--workdir=")]
        assert [word for word in rest if not word.startswith("--config")] == []
    if rest:
        check_fields(parsed_config(rest, monkeypatch))


def test_commands_are_found():
    assert len(all_python_commands()) > 50
    text = " ".join(" ".join(param.values[0]) for param in all_python_commands())
    assert text.count("main.py") > 10 and "--config.distributed=True" in text


def test_a_wrong_command_is_noticed(monkeypatch):
    with pytest.raises((AttributeError, UserError)):
        parsed_config(["--config=configs/quickstart.py", "--config.distill.hfd.wieght=5.0"], monkeypatch)
    with pytest.raises(UserError):
        words = ["--config=configs/quickstart.py", "--config.distill.method=('cdw',)"]
        check_fields(parsed_config(words, monkeypatch))


@each_document
def test_config_fields_named_in_the_text_exist(document):
    config = default.get_config()
    groups = {field.rpartition(".")[0] for field in field_names(config)} | {"data", "distill", "eval"}
    for field in re.findall(r"`(?:--)?config\.(?!json)([a-z_.]+)", prose(document)):
        added = document == EXTENDING and field.startswith("distill.cosine")
        assert added or field in groups or unknown_field(field, config) is None, field


@each_document
def test_installed_requirements_exist(document):
    for words in commands(document):
        listed = [words[place + 1] for place, word in enumerate(words[:-1]) if word in ("-r", "-c")]
        assert [file for file in listed if not (ROOT / file).exists()] == []


def write(path, array, column):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = array.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=bands, dtype=array.dtype, crs="EPSG:32631",
        transform=from_origin(500000.0 + 10000 * column, 5750000.0, 10.0, 10.0),
    ) as raster:  # fmt: skip
        raster.write(array)


def test_the_example_of_your_own_data_is_complete(tmp_path, monkeypatch):
    """Builds the README's folder with tiny rasters, then runs its commands up to training."""
    description = json.loads(first_block(README, "json"))
    tree = first_block(README, "text", "dataset.json")
    for path in ("dataset.json", "train.txt", "sar/NAME.tif", "eo/NAME.tif", "label/NAME.tif"):
        assert f"my_data/{path}" in tree
    raw, rng = tmp_path / "my_data", np.random.default_rng(0)
    tiles = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    for column, name in enumerate("abcd"):
        write(raw / f"sar/{name}.tif", rng.normal(-12, 3, (2, 96, 96)).astype(np.float32), column)
        write(raw / f"eo/{name}.tif", rng.integers(1, 255, (3, 96, 96)).astype(np.uint8), column)
        if name != "b":
            write(raw / f"label/{name}.tif", rng.choice([0, 1, 2], (1, 96, 96)).astype(np.uint8), column)
    (raw / "dataset.json").write_text(json.dumps(description))
    for split, names in tiles.items():
        (raw / description["split"][split]).write_text("\n".join(names) + "\n")

    steps = [rest for words in commands(README) for rest in python_commands(words) if "my_data" in " ".join(rest)]
    monkeypatch.chdir(tmp_path)
    for step, tool in zip(steps, ("tools.check_data", "tools.prepare_data"), strict=False):
        assert step[:2] == ["-m", tool]
        module = importlib.import_module(tool)
        module.main(module.make_parser().parse_args([*step[2:], "--workers=1"]))
    dataset = find_dataset("folder/my_data", "data")
    assert dataset.sizes == {"train": 1, "unlabelled": 1, "validation": 1, "test": 1}
    assert dataset.facts.class_names == ("land", "water") and dataset.facts.sar_bands == ("VV", "VH")
    assert dataset.source("train")[0]["sar"].shape == (96, 96, 2)

    assert steps[2][0] == "main.py"
    config = parsed_config(steps[2], monkeypatch)
    assert config.data.name == "folder/my_data"
    check_against_data(config, dataset.facts, dataset.sizes, dataset.largest("train"))


def test_the_tables_of_options_are_those_of_the_code():
    """`python -m tools.options --update` writes them."""
    from tools import options

    for name, table in options.tables().items():
        text = (ROOT / "docs" / name).read_text()
        assert options.filled(text, table) == text and table in text, name


def test_tools_options_prints_one_method_and_refuses_another(capsys):
    from tools import options

    options.main(options.make_parser().parse_args(["--method=hfd"]))
    assert "`distill.hfd.weight`" in capsys.readouterr().out
    with pytest.raises(UserError, match="--method=hdf is unknown; did you mean 'hfd'"):
        options.main(options.make_parser().parse_args(["--method=hdf"]))
