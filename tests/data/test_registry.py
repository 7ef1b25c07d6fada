"""A new data set costs one file and one line; the reader is the one that docs/extending.md shows."""

import dataclasses
import importlib
import re

import numpy as np
import pytest

from configs import scenes as scenes_config
from hfd_jax.core.errors import UserError
from hfd_jax.core.options import option, options_of
from hfd_jax.data import catalogue, registry, sen12ms
from hfd_jax.data.reader import Reader
from hfd_jax.train import stages
from tests.conftest import ROOT
from tests.runs import COARSE
from tests.trees import Sen12msTree, Spacenet6Tree, WhuTree
from tools import check_data, datasets, prepare_data

DOCUMENT = (ROOT / "docs" / "extending.md").read_text().split("## A data set")[1]
SMALL = {
    "data.crop": 32,
    "distill.hfd.taps": ("C3", "C4", "A"),
    "data.batch_size": 8,
    "data.workers": 0,
    "data.label_share": 1.0,
    "model.depth": 18,
    "model.width": 4,
    **COARSE,
    "teacher.steps": 2,
    "student.steps": 2,
    "train.eval_every": 0,
    "baselines": (),
    "eval.batch_size": 8,
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Follows the document in an empty folder: writes toy.py and adds its line to the registry."""
    (tmp_path / "toy.py").write_text(re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL).group(1))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    line = re.search(r'`    ("toy": [^`]*)`', DOCUMENT).group(1)
    module = importlib.import_module("toy")  # once per process: TFDS registers its builder by name
    name, reader = re.fullmatch(r'"(\w+)": toy\.(\w+),', line).groups()
    monkeypatch.setitem(registry.READERS, name, getattr(module, reader))
    return module


def write_pairs(folder):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 2), ("test", 2)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            label = rng.integers(0, 2, (32, 32)).astype(np.uint8)
            sar = rng.normal(-12, 2, (32, 32, 2)).astype(np.float32)
            eo = rng.integers(1, 255, (32, 32, 3)).astype(np.uint8)
            for part, array in (("sar", sar), ("eo", eo), ("label", label)):
                np.save(folder / split / f"{number}_{part}.npy", array)


def prepare(*flags):
    prepare_data.main(prepare_data.make_parser().parse_args(flags))


def test_the_documented_reader_is_prepared_and_trained(toy, tmp_path, capsys):
    write_pairs(tmp_path / "pairs")
    command = re.search(r"python -m tools.prepare_data (.*)", DOCUMENT).group(1)
    prepare(*command.split())
    name = re.search(r"--config.data.name=(\S+)", DOCUMENT).group(1)
    assert f"--config.data.name={name} --config.data.dir=data" in capsys.readouterr().out
    dataset = catalogue.find_dataset(name, "data")
    assert dataset.sizes == {"train": 8, "validation": 2, "test": 2} and dataset.facts == toy.ToySource.facts
    raw, stored = np.load("pairs/train/3_sar.npy"), dataset.source("train")[3]
    np.testing.assert_array_equal(stored["sar"], raw - 2)
    np.testing.assert_array_equal(stored["label"], np.load("pairs/train/3_label.npy"))

    config = scenes_config.get_config()
    config.update_from_flattened_dict({**SMALL, "data.name": name, "data.dir": "data"})
    config.stage = "teacher"  # the student's step, which takes long to compile, would test nothing more of the reader
    (scores,) = stages.train(config, str(tmp_path / "run")).values()
    assert 0 <= scores.mean_iou <= 1


def test_options_are_declared_once_and_shown_by_every_tool(toy):
    for tool in (prepare_data, check_data):
        text = " ".join(tool.make_parser().format_help().split())
        assert "added to the SAR values, dB (default: 0.0)" in text
        assert "sen12ms and dfc2020:" in text and text.count("--classes {simplified,no_savanna,dfc2020}") == 2


def test_defaults_are_those_of_the_reader(tmp_path):
    Sen12msTree(tmp_path, ["ROIs0000_validation/s1_validation"], ("s1", "s2", "dfc"))
    parser = prepare_data.make_parser()
    flags = ("--dataset=dfc2020", f"--raw_dir={tmp_path}")
    builder, source = datasets.make_source("dfc2020", str(tmp_path), parser.parse_args(flags))
    assert (builder, source.classes) == (sen12ms.Dfc2020, "simplified")
    arguments = parser.parse_args([*flags, "--classes=no_savanna"])
    assert datasets.make_source("dfc2020", str(tmp_path), arguments)[1].classes == "no_savanna"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset=whu_opt_sar", "--fold=1"), "--fold is an option of spacenet6; --dataset=whu_opt_sar"),
        (("--dataset=folder", "--classes=dfc2020"), "--classes is an option of sen12ms and dfc2020; --dataset=folder"),
        (("--dataset=folder", "--looks=2"), "--looks is an option of scenes; --dataset=folder does not take it"),
        (("--dataset=scenes", "--block=64"), "--block is an option of whu_opt_sar; --dataset=scenes"),
    ],
)
def test_an_option_of_another_data_set_is_refused(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        prepare(*flags, f"--raw_dir={tmp_path}", f"--data_dir={tmp_path}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset=spacenet6", "--fold=10"), "--fold=10: expected 0 or more, at most 9"),
        (("--dataset=spacenet6", "--min_area=-1"), "--min_area=-1.0: expected 0 or more"),
        (("--dataset=spacenet6", "--min_area=nan"), "--min_area=nan: expected 0 or more"),
        (("--dataset=whu_opt_sar", "--block=0"), "--block=0: expected more than 0"),
        (("--dataset=scenes", "--train=0"), "--train=0: expected more than 0"),
        (("--dataset=scenes", "--test=-1"), "--test=-1: expected 0 or more"),
    ],
)
def test_a_value_outside_the_limits_is_refused(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        prepare(*flags, f"--raw_dir={tmp_path}", f"--data_dir={tmp_path}")


@dataclasses.dataclass(frozen=True)
class EveryType(Reader):
    raw_dir: str
    despeckle: bool = option(True, "filter the SAR images")
    orbits: tuple[int, ...] = option((8, 37), "relative orbits to read", above=0)
    parts: tuple[str, ...] = option((), "parts to read", choices=("north", "south"))
    share: float = option(0.5, "share of the tiles", at_least=0, at_most=1, rule="0.13 is unlucky")

    @classmethod
    def problems(cls, values):
        yield from super().problems(values)
        if values["share"] == 0.13:
            yield "share", "unlucky"


def test_options_of_every_type_have_a_flag(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.READERS, "every", EveryType)
    parser = prepare_data.make_parser()

    def given(*flags):
        return datasets.given_options("every", parser.parse_args(["--dataset=every", *flags]), simulated=True)

    assert given() == {}
    assert given("--despeckle=false", "--orbits=1,2", "--parts=south") == {
        "despeckle": False,
        "orbits": (1, 2),
        "parts": ("south",),
    }
    assert given("--despeckle=True", "--orbits=", "--share=0") == {"despeckle": True, "orbits": (), "share": 0.0}
    text = " ".join(parser.format_help().split())
    assert "--despeckle {true,false} filter the SAR images (default: true)" in text
    assert "relative orbits to read (default: 8,37)" in text and "parts to read share" not in text
    for flag, message in {
        "--orbits=3,0": "--orbits=3,0: expected more than 0",
        "--parts=north,west": "--parts=north,west: .*expected one of: north, south",
        "--share=2": "--share=2.0: expected a share, 0 to 1",
        "--share=0.13": "--share=0.13: unlucky",
    }.items():
        with pytest.raises(UserError, match=message):
            given(flag)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--despeckle=perhaps", "argument --despeckle: 'perhaps': expected true or false"),
        ("--orbits=1,b", "argument --orbits: '1,b': expected integers separated by commas"),
    ],
)
def test_a_flag_of_the_wrong_type_is_refused(monkeypatch, capsys, flag, message):
    monkeypatch.setitem(registry.READERS, "every", EveryType)
    with pytest.raises(SystemExit):
        prepare_data.make_parser().parse_args(["--dataset=every", flag])
    assert message in capsys.readouterr().err


def test_layouts_are_recognised(tmp_path):
    Spacenet6Tree(tmp_path / "a", [591650])
    Sen12msTree(tmp_path / "b", ["ROIs1158_spring/s1_63"])
    Sen12msTree(tmp_path / "c", ["ROIs0000_validation/s1_validation"], ("s1", "s2", "dfc"))
    WhuTree(tmp_path / "d", ["NH49E001010"])
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "dataset.json").touch()
    nothing = check_data.make_parser().parse_args([str(tmp_path)])
    folders = ("a", "a/train/AOI_11_Rotterdam", "b", "c", "d", "e")
    found = [datasets.recognise(str(tmp_path / folder), nothing) for folder in folders]
    assert found == ["spacenet6", "spacenet6", "sen12ms", "dfc2020", "whu_opt_sar", "folder"]
    described = check_data.make_parser().parse_args([str(tmp_path), "--description=x.json"])
    assert datasets.recognise(str(tmp_path), described) == "folder"


def test_data_sets_that_share_an_option_must_agree(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Other(Reader):
        raw_dir: str
        block: int = option(64, "another meaning")

    assert options_of(Other)["block"].type is int
    monkeypatch.setitem(registry.READERS, "other", Other)
    with pytest.raises(ValueError, match="whu_opt_sar and other declare option --block differently"):
        prepare_data.make_parser()
