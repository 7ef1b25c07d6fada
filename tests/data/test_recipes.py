"""The supplied descriptions read small trees in the layout of the published data sets."""

import numpy as np
import pandas as pd
import pytest

from configs import recipes
from hfd_jax.data.builder import prepare
from hfd_jax.data.catalogue import read_dataset
from hfd_jax.data.described.description import read_description
from hfd_jax.data.folder import Folder, FolderSource
from hfd_jax.data.tiles import check_tile
from hfd_jax.train.validate import check_fields
from tests.conftest import ROOT, run_python
from tests.rasters import write
from tests.runs import COARSE, evaluation

RECIPES = sorted((ROOT / "configs" / "datasets").glob("*.json"))
RNG = np.random.default_rng(0)
SIZE = 24
SMALL = {
    "stage": "teacher",
    "teacher.steps": 2,
    "train.checkpoint_every": 2,
    "baselines": "()",
    "data.batch_size": 2,
    "data.crop": 32,
    "data.workers": 0,
    "model.depth": 18,
    "model.width": 4,
    "eval.batch_size": 2,
    "eval.panels": 0,
}
SHARED = ROOT.parent / "shared" / "data"


def decibel(bands):
    return RNG.normal(-14, 3, (SIZE, SIZE, bands)).astype(np.float32)


def numbers(bands, dtype=np.uint8, size=SIZE):
    return RNG.integers(1, 250, (size, size, bands)).astype(dtype)


def codes(*values, dtype=np.uint8):
    return RNG.choice(np.array(values, dtype), (SIZE, SIZE))


def sen1floods11(root):
    names = ["Bolivia_1", "Ghana_2", "Sri-Lanka_3", "USA_4"]
    for number, name in enumerate(names):
        hand = root / "data/flood_events/HandLabeled"
        sar = decibel(2)
        sar[0, 0] = np.nan
        write(hand / f"S1Hand/{name}_S1Hand.tif", sar, number)
        write(hand / f"S2Hand/{name}_S2Hand.tif", numbers(13, np.uint16), number)
        write(hand / f"LabelHand/{name}_LabelHand.tif", codes(-1, 0, 1, dtype=np.int16), number)
    lists = root / "splits/flood_handlabeled"
    lists.mkdir(parents=True)
    for split, name in zip(("bolivia", "train", "valid", "test"), names, strict=True):
        (lists / f"flood_{split}_data.csv").write_text(f"{name}_S1Hand.tif,{name}_LabelHand.tif\n")
    return {"train": 1, "validation": 1, "test": 1}


def bright(root):
    for number, folder in enumerate(("train", "train", "val", "test")):
        name = f"bata-explosion_{number:08}"
        write(root / f"{folder}/pre-event/{name}_pre_disaster.tif", numbers(3), number)
        write(root / f"{folder}/post-event/{name}_post_disaster.tif", numbers(1), number)
        write(root / f"{folder}/target/{name}_building_damage.tif", codes(0, 1, 2, 3), number)
    return {"train": 2, "validation": 1, "test": 1}


def openearthmap_sar(root):
    for number in range(10):
        name = f"TrainArea_{number:04}.tif"
        write(root / "train/sar_images" / name, numbers(1), number)
        write(root / "train/rgb_images" / name, numbers(3), number)
        write(root / "train/labels" / name, codes(*range(9)), number)
    return {"train": 7, "validation": 1, "test": 2}


def terramesh(root):
    for number in range(10):
        write(root / f"S1RTC/{number}D_1L.tif", decibel(2).astype(np.float64), number)
        write(root / f"S2L2A/{number}D_1L.tif", numbers(12, np.int16), number)
        write(root / f"LULC/{number}D_1L.tif", codes(*range(10)), number)
    return {"train": 7, "validation": 1, "test": 2}


def terramind(root):
    for number, name in enumerate(("433D_629L_3_1", "637U_59R_1_3")):
        write(root / f"S1RTC/{name}.tif", decibel(2), number)
        write(root / f"S2L2A/{name}.tif", numbers(12, np.int16), number)
        write(root / f"LULC/{name}.tif", codes(1, 2, 4), number)
    return {"train": 2, "test": 2}


def bigearthnet(root):
    rows = []
    bands = {"10": ("B02", "B03", "B04", "B08"), "20": ("B05", "B06", "B07", "B8A", "B11", "B12"), "60": ("B01", "B09")}
    for number, split in enumerate(("train", "validation", "test")):
        tile, place = f"S2A_MSIL2A_2017061{number}T101031_N9999_R022_T33UUP", f"_26_{number}"
        patch, scene = tile + place, f"S1A_IW_GRDH_1SDV_2017061{number}T165043"
        s1 = f"{scene}_33UUP{place}"
        rows.append({"patch_id": patch, "labels": ["Pastures"], "split": split, "country": "Austria", "s1_name": s1})
        for band in ("VV", "VH"):
            write(root / f"BigEarthNet-S1/{scene}/{s1}/{s1}_{band}.tif", decibel(1), number)
        for edge, of_edge in bands.items():
            for band in of_edge:
                image = numbers(1, np.uint16, SIZE * 10 // int(edge))
                write(root / f"BigEarthNet-S2/{tile}/{patch}/{patch}_{band}.tif", image, number, pixel=float(edge))
        label = codes(111, 112, 311, 523, 999, dtype=np.uint16)
        write(root / f"Reference_Maps/{tile}/{patch}/{patch}_reference_map.tif", label, number)
    rows.append({"patch_id": "elsewhere", "labels": [], "split": "train", "country": "Austria", "s1_name": "none"})
    pd.DataFrame(rows).to_parquet(root / "metadata.parquet")
    return {"train": 1, "validation": 1, "test": 1}


def ombria(root):
    for number, folder in enumerate(("train", "train", "test")):
        for part, image in (("AFTER", "after"), ("BEFORE", "before"), ("MASK", "mask")):
            values = codes(0, 255) if part == "MASK" else numbers(1)
            write(root / f"OmbriaS1/{folder}/{part}/S1_{image}_{number:04}.png", values, crs=None)
        write(root / f"OmbriaS2/{folder}/AFTER/S2_after_{number:04}.png", numbers(3), crs=None)
    (root / "index.csv").write_text("number,folder,split\n0000,train,train\n0001,train,val\n0002,test,test\n")
    return {"train": 1, "validation": 1, "test": 1}


TREES = [sen1floods11, bright, openearthmap_sar, terramesh, terramind, bigearthnet, ombria]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_a_published_layout_is_read_by_its_recipe_alone(tmp_path, tree):
    expected = tree(tmp_path)
    source = FolderSource(str(tmp_path), description=str(ROOT / f"configs/datasets/{tree.__name__}.json"))
    keys = source.keys()
    assert {split: len(of_split) for split, of_split in keys.items()} == expected
    for key in (key for of_split in keys.values() for key in of_split):
        tile = source.read(key)
        check_tile(tile, source.facts)
        assert tile.label is not None and tile.eo_valid.any()


def test_every_recipe_is_valid_and_tested():
    assert {path.stem.removesuffix("_folds") for path in RECIPES} == {tree.__name__ for tree in TREES}
    for path in RECIPES:
        assert read_description(str(path)).name == path.stem.removesuffix("_folds")
    for name in recipes.SIZES:
        check_fields(recipes.get_config(name))


# One of them by default: the networks are the same, and each compiles for half a minute.
@pytest.mark.parametrize(
    "tree", [TREES[0], *(pytest.param(tree, marks=pytest.mark.slow) for tree in TREES[1:] if tree is not terramind)]
)
def test_from_the_published_files_to_a_trained_step(tmp_path, tree):
    name = tree.__name__
    tree(tmp_path / "raw")
    description = f"--description={ROOT / 'configs' / 'datasets' / f'{name}.json'}"
    data = f"--data_dir={tmp_path / 'data'}"
    prepared = run_python(
        "-m", "tools.prepare_data", "--dataset=folder", f"--raw_dir={tmp_path / 'raw'}", description, data
    )
    assert f"--config.data.name=folder/{name} " in prepared.stdout
    config = f"--config=configs/{'ombria.py' if tree is ombria else f'recipes.py:{name}'}"
    small = {**COARSE, **SMALL, "data.dir": tmp_path / "data"}
    flags = [f"--config.{field}={value}" for field, value in small.items()]
    done = run_python("main.py", config, f"--workdir={tmp_path / 'run'}", *flags)
    assert "teacher (EO)" in done.stdout and set(evaluation(tmp_path / "run")) == {"teacher"}


def test_a_recipe_that_does_not_exist_is_named(tmp_path):
    done = run_python("main.py", "--config=configs/recipes.py:brigt", f"--workdir={tmp_path}", check=False)
    assert done.returncode == 1 and "configs/recipes.py:brigt: did you mean 'bright'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_bands_of_several_grids_and_codes_of_one_class(tmp_path):
    bigearthnet(tmp_path)
    source = FolderSource(str(tmp_path), description=str(ROOT / "configs/datasets/bigearthnet.json"))
    tile = source.read(source.keys()["test"][0])
    assert tile.sar.shape == (SIZE, SIZE, 2) and tile.eo.shape == (SIZE, SIZE, 12) and tile.eo.dtype == np.uint16
    assert set(np.unique(tile.label)) == {0, 8, 18, 255}  # urban fabric, broad-leaved forest, marine waters
    assert source.notes == [f"1 row(s) of {tmp_path / 'metadata.parquet'} have no file, for example elsewhere"]


@pytest.mark.skipif(not (SHARED / "ombria").is_dir(), reason="the real chips are not here")
def test_real_png_chips_of_two_dates(tmp_path):
    recipe = str(ROOT / "configs/datasets/ombria.json")
    source = FolderSource(str(SHARED / "ombria"), description=recipe)
    keys = source.keys()
    assert {split: len(of_split) for split, of_split in keys.items()} == {"train": 481, "validation": 81, "test": 116}
    folds = [
        FolderSource(str(SHARED / "ombria"), description=recipe.replace(".", "_folds."), test_fold=str(fold))
        for fold in range(4)
    ]
    sizes = [{split: len(of_split) for split, of_split in fold.keys().items()} for fold in folds]
    assert all(sum(size.values()) == 678 and size["validation"] == 81 for size in sizes)
    assert sum(size["test"] for size in sizes) == 678 - 81, "every other chip is tested once"
    few = {split: of_split[:2] for split, of_split in keys.items()}
    source.__dict__["_keys"] = few
    dataset = read_dataset(prepare(Folder, source, str(tmp_path)))
    assert dataset.sizes == {"train": 2, "validation": 2, "test": 2}
    assert dataset.facts.sar_bands == ("VV_after", "VV_before") and dataset.facts.pixel_size == 0
