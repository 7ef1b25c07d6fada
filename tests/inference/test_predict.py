"""From scene to map: with a small network, on simulated scenes and on a real one."""

import dataclasses
import os
import tracemalloc
import warnings

import jax
import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine, from_origin

from hfd_jax.core.errors import DataError, UserError, WorkdirError
from hfd_jax.core.parallel import make_parallel
from hfd_jax.data.simulator import CLASS_COLOURS, CLASS_NAMES, simulate
from hfd_jax.inference.mapping import mosaic, run
from hfd_jax.inference.mapping.listing import targets
from hfd_jax.inference.mapping.predict import Options, Predictor, views
from hfd_jax.inference.mapping.reader import Interpretation
from hfd_jax.inference.mapping.writer import CLASSES, CONFIDENCE, PROBABILITIES, Target
from hfd_jax.inference.restore import load_network
from tests.conftest import ROOT
from tests.scene_files import UTM, read, run_tool, write
from tests.small_network import TILES, write_network
from tools import predict as tool

ROTTERDAM = ROOT.parent / "shared" / "data" / "spacenet6_rotterdam" / "sar_masked.tif"
SMALL = {"window": 64, "overlap": 32}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of a run with a trained student; its selection module averages over 32 pixels."""
    folder = tmp_path_factory.mktemp("run")
    write_network(folder)
    return folder


@pytest.fixture(scope="module")
def scene():
    """301 x 397 pixels, simulated: no multiple of a stride, window or block."""
    found = simulate(7, dataclasses.replace(TILES, size=397))
    return dataclasses.replace(found, **{f.name: getattr(found, f.name)[:301] for f in dataclasses.fields(found)})


@pytest.fixture(scope="module")
def predictors(workdir):
    """(devices, kind of parallelism, options) -> Predictor; cached, because each one compiles."""
    made, networks = {}, {}

    def make(devices=1, kind="jit", described=None, **options):
        parallel = make_parallel(kind, jax.devices()[:devices])
        if (kind, devices) not in networks:
            networks[kind, devices] = load_network(str(workdir / "checkpoints" / "student"), "latest", parallel)
        key = kind, devices, described, tuple(options.items())
        if key not in made:
            options = Options(described=described or Interpretation(), **options)
            made[key] = Predictor(networks[kind, devices], parallel, options)
        return made[key]

    return make


def mapped(predictor, path, output, products=(CLASSES,)):
    """The maps of a scene: [H, W] classes, and [bands, H, W] of the other products."""
    target = Target(os.path.join(output, "map"), products)
    with predictor.open(path) as scene:
        predictor(scene, target)
        notes = scene.notes
    found = [read(target.path(product)) for product in products]
    return found[0][0], *found[1:], notes


@pytest.fixture(scope="module")
def made(workdir, scene, tmp_path_factory):
    """(flags of the tool, scene's path, [H, W, 2] of it, folder of its maps): all three, made on all eight devices."""
    folder = tmp_path_factory.mktemp("made")
    sar = scene.sar.copy()
    sar[:100, 250:, 1] = np.nan
    path = write(folder / "scene.tif", sar, names=("VV", "VH"))
    flags = [f"workdir={workdir}", f"input={path}", f"output={folder}/maps", "window=64", "overlap=32"]
    run_tool(*flags, "probabilities", "confidence")
    return flags, path, sar, folder / "maps"


def test_maps_agree_with_each_other_and_with_the_scene(made, scene):
    _, _, sar, folder = made
    files = ["scene.tif", "scene.tif.aux.xml", "scene_confidence.tif", "scene_probabilities.tif"]
    assert sorted(os.listdir(folder)) == files, "the names and colours of the classes lie beside the map"
    classes, confidence, probabilities = (read(folder / f"scene{s}.tif") for s in ("", "_confidence", "_probabilities"))
    there = np.isfinite(sar).all(-1)
    for bands in (classes, confidence, probabilities):
        assert bands.shape[1:] == (301, 397) and np.array_equal((bands != 255).any(0), there)
    assert (np.abs(probabilities.astype(int).sum(0) - 254) <= 2)[there].all(), "five rounded parts"
    assert np.array_equal(confidence[0], probabilities.max(0))
    winning = np.take_along_axis(probabilities, np.where(there, classes[0], 0)[None], 0)[0]
    assert np.array_equal(winning[there], confidence[0][there])

    def agreement(shift):
        moved = np.roll(classes[0], shift, (0, 1)) == scene.label
        return moved[20:-20, 20:-20][there[20:-20, 20:-20]].mean()

    shifts = [(0, 0), (8, 0), (-8, 0), (0, 8), (0, -8)]
    assert max(shifts, key=agreement) == (0, 0), "the map overlays the truth"


def test_a_map_has_the_scenes_georeference_and_the_names_of_the_classes(made):
    _, path, _, folder = made
    for suffix in ("", "_confidence", "_probabilities"):
        with rasterio.open(folder / f"scene{suffix}.tif") as raster, rasterio.open(path) as source:
            assert (raster.crs, raster.transform, raster.nodata) == (source.crs, source.transform, 255)
            assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and raster.profile["compress"] == "deflate"
            assert raster.tags()["NETWORK"] == "HFD student (SAR)" and raster.tags()["STEP"] == "1"
            if suffix:
                assert raster.scales[0] == pytest.approx(1 / 254) and raster.offsets[0] == 0
            else:
                assert [raster.tags()[f"CLASS_{k}"] for k in range(5)] == list(CLASS_NAMES)
                assert [raster.colormap(1)[k][:3] for k in range(5)] == list(CLASS_COLOURS)
                assert raster.colormap(1)[255][3] == 0, "transparent"
                assert f"<F>{CLASS_NAMES[1]}</F>" in (folder / "scene.tif.aux.xml").read_text()
            assert suffix != "_probabilities" or raster.descriptions == CLASS_NAMES


def test_a_repeated_command_computes_nothing_and_other_settings_are_refused(made, capsys):
    flags, _, _, folder = made
    before = os.stat(folder / "scene.tif").st_ino
    run_tool(*flags)
    assert os.stat(folder / "scene.tif").st_ino == before and "is finished" in capsys.readouterr().out
    with pytest.raises(WorkdirError, match="was made with other settings.*Differing: overlap: 32 stored, 0 now"):
        run_tool(*flags[:-1], "overlap=0")


def test_maps_do_not_depend_on_windows_batches_or_devices(predictors, scene, tmp_path):
    """Compares with the scene as one window; the margin, a quarter of 192 pixels, covers the receptive field.

    Only rounding differs: of sums in another order, and to 254 steps. So no window leaves a seam.
    """
    path = write(tmp_path / "scene.tif", scene.sar)
    whole = predictors(window=416, batch_size=1)
    kinds = [
        predictors(window=224, overlap=192, batch_size=5),
        predictors(devices=2, kind="pmap", window=224, overlap=192, batch_size=1),
        predictors(devices=8, window=256, overlap=192, batch_size=8),
    ]
    expected, probabilities, _ = mapped(whole, path, tmp_path, (CLASSES, PROBABILITIES))
    assert np.bincount(expected.ravel(), minlength=5).min() > 300, "all classes occur"
    for predictor in kinds:
        found, others, _ = mapped(predictor, path, tmp_path, (CLASSES, PROBABILITIES))
        assert np.abs(others.astype(int) - probabilities).max() <= 1
        assert (found != expected).mean() < 1e-4, "near-ties"


def test_small_windows_leave_no_seams(predictors, scene, tmp_path):
    """Windows smaller than the receptive field: maps differ a little, but not more at window borders."""
    path = write(tmp_path / "scene.tif", scene.sar)
    expected, _ = mapped(predictors(window=416, batch_size=1), path, tmp_path)
    found, _ = mapped(predictors(**SMALL), path, tmp_path)
    wrong, starts = found != expected, np.arange(32, 416, 32)  # where windows begin and, 64 pixels on, end
    near = [(np.abs(np.arange(n)[:, None] - starts) < 8).any(1) for n in wrong.shape]
    near = near[0][:, None] | near[1]
    assert wrong.mean() < 0.1
    assert wrong[near].mean() < 1.25 * wrong[~near].mean(), (
        "within the noise of some thousand pixels that hang together"
    )


@pytest.mark.parametrize(
    "georeference",
    [
        {"crs": "EPSG:4326", "transform": from_origin(4.3, 51.9, 1e-5, 6e-6)},
        {
            "crs": "EPSG:32631",
            "transform": Affine.translation(592000, 5750000) * Affine.rotation(30) * Affine.scale(2, -2),
        },
        {
            "crs": "EPSG:4326",
            "gcps": [GroundControlPoint(r, c, 4.3 + c / 1e4, 51.9 - r / 1e4) for r in (0, 50) for c in (0, 70)],
        },
        {"transform": Affine.identity()},
    ],
    ids=["geographic", "rotated", "gcps", "none"],
)
def test_every_kind_of_georeference_is_preserved(predictors, scene, tmp_path, georeference):
    path = write(tmp_path / "scene.tif", scene.sar[:50, :70], **georeference)
    found, notes = mapped(predictors(**SMALL), path, tmp_path)
    assert found.shape == (50, 70) and (found < 5).all(), "smaller than a window in one direction"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(tmp_path / "map.tif") as raster, rasterio.open(path) as source:
            assert raster.crs == source.crs and raster.transform == source.transform
            places = [[(p.row, p.col, p.x, p.y) for p in r.gcps[0]] for r in (raster, source)]
            assert places[0] == places[1] and raster.gcps[1] == source.gcps[1]
    assert ("no CRS" in " ".join(notes)) == ("crs" not in georeference)


def test_nodata_and_invalid_values_become_255(predictors, scene, tmp_path):
    sar = scene.sar[:96, :96].copy()
    sar[10:30, 10:30] = -9999
    sar[40, 40, 0] = np.inf
    sar[50, 50] = -9999, -10  # one band alone: a value, but no backscatter
    predictor = predictors(**SMALL)
    found, notes = mapped(predictor, write(tmp_path / "scene.tif", sar, nodata=-9999), tmp_path)
    expected = np.zeros((96, 96), bool)
    expected[10:30, 10:30] = expected[40, 40] = expected[50, 50] = True
    assert np.array_equal(found == 255, expected) and "pixels outside -80 to 60 dB count as no data" in " ".join(notes)
    with pytest.raises(DataError, match=r"SAR values from -9999 .* \(--nodata=-9999\)"):
        mapped(predictor, write(tmp_path / "untagged.tif", sar), tmp_path)
    tagged = predictors(**SMALL, described=Interpretation(nodata=-9999.0))
    again, _ = mapped(tagged, str(tmp_path / "untagged.tif"), tmp_path)
    assert np.array_equal(again, found)
    empty, notes = mapped(predictor, write(tmp_path / "empty.tif", np.full_like(sar, np.nan)), tmp_path)
    assert (empty == 255).all() and "no valid pixel" in " ".join(notes)


def test_bands_are_found_by_name_or_chosen(predictors, scene, tmp_path):
    sar = scene.sar[:96, :96]
    three = np.concatenate([sar[..., 1:], sar * 0 - 5, sar[..., :1]], -1)
    expected, notes = mapped(predictors(**SMALL), write(tmp_path / "two.tif", sar), tmp_path)
    assert "taken as VV, VH, in this order" in notes[0]
    named = write(tmp_path / "named.tif", three, names=("vh", "angle", "other", "VV"))
    found, notes = mapped(predictors(**SMALL), named, tmp_path)
    assert np.array_equal(found, expected) and not notes
    for bands in (("4", "1"), ("VV", "vh")):
        found, _ = mapped(predictors(**SMALL, described=Interpretation(bands=bands)), named, tmp_path)
        assert np.array_equal(found, expected)
    for image, names, bands, message in (
        (three, (), (), r"4 bands; HFD student \(SAR\) reads 2 \(VV, VH\): choose them with --bands=1,2"),
        (sar, ("VV", "HH"), (), "has no band named 'VH' among VV, HH"),
        (sar, (), ("3", "1"), "--bands names '3'; .*expected one of: 1, 2"),
        (sar, (), ("1",), "--bands=1 are 1 bands; HFD student"),
        (sar.astype(np.complex64), (), (), "band 1 is complex"),
    ):
        path = write(tmp_path / "wrong.tif", image, names=names)
        with pytest.raises(DataError, match=message):
            predictors(**SMALL, described=Interpretation(bands=bands)).open(path)


def test_units_are_checked_against_the_training_data(predictors, scene, tmp_path):
    db = scene.sar[:96, :96]
    expected, _ = mapped(predictors(**SMALL), write(tmp_path / "db.tif", db), tmp_path)
    power = write(tmp_path / "power.tif", (10 ** (db / 10)).astype(np.float32))
    with pytest.raises(DataError, match="trained on dB.*--sar_unit=linear converts"):
        mapped(predictors(**SMALL), power, tmp_path)
    linear = predictors(**SMALL, described=Interpretation(sar_unit="linear"))
    found, _ = mapped(linear, power, tmp_path)
    assert (found == expected).mean() > 0.999, "but for the rounding of the powers"
    with pytest.raises(DataError, match="0 or less; --sar_unit=linear is a power"):
        mapped(linear, str(tmp_path / "db.tif"), tmp_path)
    with pytest.raises(DataError, match="not calibrated linear power"):
        mapped(linear, write(tmp_path / "counts.tif", (db + 100).astype(np.uint16)), tmp_path)
    with pytest.raises(DataError, match="stays below 30 dB"):
        mapped(predictors(**SMALL), write(tmp_path / "raw.tif", 2 * db + 45), tmp_path)
    with pytest.raises(DataError, match="--sar_unit=raw: HFD student .* unit 'db'"):
        predictors(**SMALL, described=Interpretation(sar_unit="raw"))


def test_what_is_finished_stays_and_what_fails_stops_no_other(predictors, scene, tmp_path, monkeypatch, capsys):
    names = ("a", "broken", "c", "d")
    paths = [write(tmp_path / f"{name}.tif", scene.sar[:96, :96]) for name in names]
    os.truncate(paths[1], 30_000)
    predictor, output = predictors(**SMALL), tmp_path / "maps"
    where = targets(paths, str(output), (CLASSES, CONFIDENCE))

    def stop(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        run.predict_scenes(predictor, paths[:1], where[:1], overwrite=False)
        patch.setattr(mosaic.Mosaic, "close", stop)
        with pytest.raises(KeyboardInterrupt):
            run.predict_scenes(predictor, paths[2:], where[2:], overwrite=False)
    assert sorted(os.listdir(output)) == ["a.tif", "a.tif.aux.xml", "a_confidence.tif"], "no half file"
    first = os.stat(output / "a.tif").st_ino
    os.mkdir(output / "c.partial")  # what a killed run leaves
    (output / "c.partial" / "growing.tif").write_bytes(b"half")
    with pytest.raises(DataError, match=f"1 of 4 scenes failed: {tmp_path}/broken.tif: damaged or truncated"):
        run.predict_scenes(predictor, paths, where, overwrite=False)
    expected = sorted(f"{name}{ending}" for name in "acd" for ending in (".tif", ".tif.aux.xml", "_confidence.tif"))
    assert sorted(os.listdir(output)) == expected and os.stat(output / "a.tif").st_ino == first
    out = capsys.readouterr()
    assert "scene 2/4: failed: " in out.err and "scene 1/4: " in out.out and "a.tif: is finished" in out.out

    os.remove(output / "d_confidence.tif")
    (output / "c.tif").write_bytes(b"foreign")
    with pytest.raises(WorkdirError, match=r"c.tif: exists and is not a map of tools.predict; --overwrite"):
        run.predict_scenes(predictor, paths, where, overwrite=False)
    assert not (output / "d_confidence.tif").exists(), "nothing was computed"
    run.predict_scenes(predictor, paths[2:], where[2:], overwrite=True)
    assert np.array_equal(read(output / "c.tif"), read(output / "a.tif")) and (output / "d_confidence.tif").exists()
    write(tmp_path / "c.tif", scene.sar[:96, :64])
    with pytest.raises(WorkdirError, match="c.tif: was made with other settings.*Differing: scene.bytes: "):
        run.predict_scenes(predictor, paths[2:], where[2:], overwrite=False)


def test_a_map_that_does_not_read_back_gets_no_name(predictors, scene, tmp_path, monkeypatch):
    """GDAL may write half a file on a full disk and report nothing."""
    path = write(tmp_path / "scene.tif", scene.sar[:96, :96])
    copy = rasterio.shutil.copy

    def cut_short(source, target, **options):
        copy(source, target, **options)
        os.truncate(target, os.path.getsize(target) - 200)

    monkeypatch.setattr(rasterio.shutil, "copy", cut_short)
    with pytest.raises(WorkdirError, match=r"map.tif: cannot be written \(what was written does not read back"):
        mapped(predictors(**SMALL), path, tmp_path / "maps")
    assert os.listdir(tmp_path / "maps") == []


def test_processes_share_the_scenes(predictors, scene, tmp_path, monkeypatch):
    paths = [write(tmp_path / f"{name}.tif", scene.sar[:96, :96]) for name in "abc"]
    where = targets(paths, str(tmp_path / "maps"), (CLASSES,))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(run, "wait_for_all", lambda what: None)
    run.predict_scenes(predictors(**SMALL), paths, where, overwrite=False)
    assert sorted(os.listdir(tmp_path / "maps")) == ["b.tif", "b.tif.aux.xml"]


def test_flips_and_turns(predictors, scene, tmp_path):
    """A map averaged over flips turns with the scene; a scene from the opposite side is mapped like the original."""
    assert views("x", False, False) == [()] and views("x", True, False) == [(), (0,)]
    assert views("any", True, False) == [(), (0,), (1,), (0, 1)] and views("y", True, True) == [(0, 1), (0,)]
    # One window of whole strides, so that mirrored pixels meet the same grid.
    sar = scene.sar[:64, :64]
    flips, turns = predictors(**SMALL, flips=True), predictors(**SMALL, rotate=True)
    one, _ = mapped(flips, write(tmp_path / "a.tif", sar), tmp_path)
    other, _ = mapped(flips, write(tmp_path / "b.tif", sar[::-1]), tmp_path)
    assert (one == other[::-1]).mean() > 0.999, "near-ties"
    plain, _ = mapped(predictors(**SMALL), str(tmp_path / "a.tif"), tmp_path)
    assert not np.array_equal(plain, one)
    turned, _ = mapped(turns, write(tmp_path / "c.tif", sar[::-1, ::-1]), tmp_path)
    assert np.array_equal(turned[::-1, ::-1], plain)


def test_a_scene_stored_from_east_to_west_is_turned_for_the_network(predictors, scene, tmp_path):
    """The radar looks along the rows: mirrored columns would show it from the other side."""
    sar, predictor = scene.sar[:64, :64], predictors(**SMALL)
    plain, _ = mapped(predictor, write(tmp_path / "a.tif", sar), tmp_path)
    westward = UTM | {"transform": Affine(-1, 0, 592064, 0, -1, 5750000)}
    turned, _ = mapped(predictor, write(tmp_path / "b.tif", sar[:, ::-1], **westward), tmp_path)
    assert np.array_equal(turned[:, ::-1], plain)
    south_up = UTM | {"transform": Affine(1, 0, 592000, 0, 1, 5749936)}
    upward, _ = mapped(predictor, write(tmp_path / "c.tif", sar[::-1], **south_up), tmp_path)
    assert not np.array_equal(upward[::-1], plain), "a flip that training makes, too: not turned"
    with predictor.open(str(tmp_path / "b.tif")) as one, predictor.open(str(tmp_path / "c.tif")) as other:
        assert predictor.settings(one)["turned"] == [1] and "turned" not in predictor.settings(other)


def test_a_scene_of_other_pixels_gets_a_remark(predictors, scene, tmp_path):
    large = UTM | {"transform": Affine(10, 0, 592000, 0, -10, 5750000)}
    *_, notes = mapped(predictors(**SMALL), write(tmp_path / "a.tif", scene.sar[:64, :64], **large), tmp_path)
    assert sum("its pixels measure 10 m, those of the training data 1 m" in note for note in notes) == 1
    *_, notes = mapped(predictors(**SMALL), write(tmp_path / "b.tif", scene.sar[:64, :64]), tmp_path)
    assert not any("pixels measure" in note for note in notes)


def test_polygons_of_a_scene_without_crs_are_refused_before_it_is_mapped(workdir, scene, tmp_path):
    path = write(tmp_path / "scene.tif", scene.sar[:64, :64], transform=Affine.identity())
    flags = [f"workdir={workdir}", f"input={path}", f"output={tmp_path}/maps", "window=64", "overlap=32"]
    with pytest.raises(DataError, match=r"scene.tif: has no CRS; --polygons needs a georeferenced scene"):
        run_tool(*flags, "polygons=water")
    assert not list((tmp_path / "maps").glob("*.tif"))


def test_the_teacher_maps_optical_scenes(scene, tmp_path):
    write_network(tmp_path / "run", "eo")
    path = write(tmp_path / "scene.tif", scene.eo[:96, :96], nodata=0)
    flags = [f"workdir={tmp_path}/run", f"output={tmp_path}/maps", "window=64", "overlap=32", "network=teacher"]
    run_tool(*flags, f"input={path}")
    found = read(tmp_path / "maps" / "scene.tif")[0]
    assert (found < 5).all() and len(np.unique(found)) > 1
    for image, more, message in (
        (scene.sar[:96, :96], [], r"2 bands; teacher \(EO\) reads 4 \(R, G, B, NIR\)"),
        (scene.eo[:96, :96].astype(np.uint16), [], r"is uint16; teacher \(EO\) was trained on uint8"),
        (np.full((96, 96, 4), 255, np.uint8), [], "in no band do they overlap the values"),
        (scene.eo[:96, :96], ["sar_unit=db"], "--sar_unit=db: teacher .* reads optical scenes"),
        (scene.eo[:96, :96], ["window=50"], "--window=50: expected a multiple of the network's stride 32"),
        (scene.eo[:96, :96], ["overlap=64"], "--overlap=64: expected less than the window's edge, 64"),
        (scene.eo[:96, :96], ["network=student"], "no network 'student' in it; expected one of: teacher"),
    ):
        with pytest.raises(UserError, match=message):
            run_tool(*flags, f"input={write(tmp_path / 'wrong.tif', image)}", *more)


def test_memory_depends_on_the_window_and_not_on_the_scene(predictors, tmp_path):
    """A scene four times as long needs no more memory. A stub replaces the network."""
    predictor, peaks = Predictor.__new__(Predictor), []
    vars(predictor).update(vars(predictors(**SMALL)))
    predictor._step = lambda turned: lambda variables, batch: np.zeros((len(batch["rows"]), 5, 64, 64), np.float32)
    rng = np.random.default_rng(0)
    for rows in (512, 2048):
        path = write(tmp_path / "scene.tif", rng.normal(-12, 4, (rows, 640, 2)).astype(np.float32))
        tracemalloc.start()
        mapped_rows = mapped(predictor, path, tmp_path)[0].shape[0]
        peaks.append(tracemalloc.get_traced_memory()[1] - mapped_rows * 640)  # the map that the test itself reads
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.skipif(not ROTTERDAM.exists(), reason="the real scene is missing")
def test_the_map_of_a_real_scene_has_its_georeference(predictors, tmp_path):
    predictor = predictors(**SMALL, described=Interpretation(bands=("4", "3")))
    found, _ = mapped(predictor, str(ROTTERDAM), tmp_path)
    image = read(ROTTERDAM)
    assert np.array_equal(found == 255, ~np.isfinite(image[2:]).all(0)) and len(np.unique(found)) > 2
    with rasterio.open(tmp_path / "map.tif") as raster, rasterio.open(ROTTERDAM) as source:
        assert (raster.crs, raster.transform, raster.shape) == (source.crs, source.transform, source.shape)


def test_the_help_of_the_tool():
    text = tool.make_parser().format_help()
    assert "  python -m tools.predict --workdir" in text and "--sar_unit" in text
