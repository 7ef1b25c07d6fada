"""The teacher's stored features: the same training as with the teacher in the step, and never another teacher's."""

import dataclasses

import jax
import numpy as np
import pytest

from hfd_jax import steps
from hfd_jax.data import inputs
from hfd_jax.data.pipeline import Reading, Ref
from hfd_jax.distill import cache
from hfd_jax.distill.cache import Layout, prepare
from hfd_jax.errors import ConfigError, WorkdirError
from tests import runs
from tests.test_steps import INPUTS, make_batch, make_setup, make_state, make_teacher


@pytest.mark.parametrize(("look_axis", "count"), [("x", 2), ("y", 2), ("any", 8)])
def test_variants_are_what_the_augmentation_makes(look_axis, count):
    spec = dataclasses.replace(INPUTS, look_axis=look_axis, augmentation=inputs.augment.Augmentation())
    assert inputs.variants(spec) == count
    batch = make_batch(size=32, edge=32)
    augmented = inputs.training_input(batch, spec)
    drawn = np.asarray(inputs.drawn_variant(batch["key"], spec))
    assert set(drawn) == set(range(count)), "32 samples meet every variant"
    for variant in range(count):
        made = inputs.variant_input(batch, variant, spec)
        for name in ("eo", "eo_valid", "label"):
            np.testing.assert_array_equal(augmented[name][drawn == variant], made[name][drawn == variant])


def test_a_step_on_stored_features_is_the_step_with_the_teacher():
    """Up to float16, 11 bits: one step in a thousand in what the teacher says."""
    plain = make_setup(kd=0.0)
    plain = dataclasses.replace(plain, inputs=dataclasses.replace(INPUTS, augmentation=inputs.augment.Augmentation()))
    cached = dataclasses.replace(plain, cached=True)
    batch, teacher = make_batch(), jax.device_get(make_teacher())
    drawn = np.asarray(inputs.drawn_variant(batch["key"], plain.inputs))
    compute = jax.jit(steps.variant_features, static_argnums=0)
    stored = [compute(plain, variant, teacher, batch) for variant in range(2)]
    features = {
        f"teacher_{tap}": np.where(drawn[:, None, None, None] == 0, stored[0][tap], stored[1][tap]).astype(np.float16)
        for tap in plain.distiller.taps
    }
    without_eo = {name: array for name, array in batch.items() if name != "eo"} | features
    state = make_state(plain)(jax.random.key(0))
    one, other = (
        jax.device_get(jax.jit(steps.train_step(setup))(state, variables, b)[1])
        for setup, variables, b in ((plain, teacher, batch), (cached, {}, without_eo))
    )
    for name in one:
        assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name


def test_records_are_found_by_tile_and_variant(rng):
    layout = Layout({"train": 3, "unlabelled": 2}, 2, {"C3": (2, 2, 4), "A": (4, 4, 1)})
    refs = [Ref(split, index, True) for split, index in layout.tiles]
    assert [layout.record(ref, v) for ref in refs for v in (0, 1)] == list(range(10))
    sample = {tap: rng.normal(size=shape).astype(np.float16) for tap, shape in layout.shapes.items()}
    record = layout.encode(sample)
    assert len(record) == layout.record_bytes == 2 * (16 + 16)
    for tap, array in layout.decode(record).items():
        np.testing.assert_array_equal(array, sample[tap])


def stored(folder, scenes, identity, **more):
    """What `prepare` makes of features that are the optical image, eight times smaller, plus the variant's number."""
    calls = []

    def teach(variant, batch):
        calls.append(variant)
        return {"C3": batch["eo"][:, ::8, ::8].astype(np.float32) + variant}

    reading = Reading((0, 1), (0, 1, 2), threads=1)
    options = {"splits": ["train", "test"], "reading": reading, "crop": 64, "teach": teach, "variants": 2} | more
    return prepare(str(folder), identity, scenes, **options), len(calls)


def test_features_are_computed_once_and_anew_where_something_else_decides_them(tmp_path, scenes, monkeypatch):
    monkeypatch.setattr(cache, "TILES_PER_FILE", 10)  # four files for 24 + 10 tiles, one across both splits
    folder = tmp_path / "features"
    features, calls = stored(folder, scenes, {"teacher": 1})
    refs = [Ref("test", 9, True), Ref("train", 23, False), Ref("train", 0, True)]
    found = features(refs, [1, 0, 1])["teacher_C3"]
    for ref, variant, array in zip(refs, [1, 0, 1], found, strict=True):
        eo = scenes.source(ref.split)[ref.index]["eo"]
        np.testing.assert_array_equal(array, eo[::8, ::8, :3].astype(np.float16) + variant)
    assert calls > 4 and stored(folder, scenes, {"teacher": 1})[1] == 1, "one call for the shapes"

    (folder / "features-00001.array_record").write_bytes(b"")  # what a crash of the machine may leave
    features, calls = stored(folder, scenes, {"teacher": 1})
    assert calls == 1 + 2 * 2
    np.testing.assert_array_equal(features(refs, [1, 0, 1])["teacher_C3"], found)

    lost = folder / "features-00002.array_record"
    content = lost.read_bytes()
    lost.rename(folder / "features-00002.array_record.7.tmp")  # killed while it was written
    _, calls = stored(folder, scenes, {"teacher": 1})
    assert 1 < calls <= 1 + 2 * 2 and lost.read_bytes() == content
    assert stored(folder, scenes, {"teacher": 2})[1] > 4
    assert len(list(folder.glob("*.tmp"))) == 0


def test_what_cannot_be_stored_is_said(tmp_path, scenes, monkeypatch):
    with pytest.raises(ConfigError, match="C3 of tile 0 of split 'train' holds values that are not finite or beyond"):
        stored(tmp_path / "a", scenes, {}, teach=lambda variant, batch: {"C3": batch["eo"] * np.float32(1e4)})
    full = {"write": None, "close": lambda self: None}
    full["write"] = lambda self, record: (_ for _ in ()).throw(RuntimeError("write() failed: No space left on device"))
    with monkeypatch.context() as patch:
        patch.setattr(cache, "ArrayRecordWriter", type("Full", (), {"__init__": lambda self, *a: None, **full}))
        with pytest.raises(WorkdirError, match=r"features-00000.array_record: cannot be written .*No space left"):
            stored(tmp_path / "c", scenes, {})
    with pytest.raises(ConfigError, match=r"config.data.crop is 32, the largest train tile has 64 x 64 pixels"):
        stored(tmp_path / "b", scenes, {}, crop=32)


def test_a_run_with_the_cache_is_the_run_without(tmp_path, scenes_dir):
    """The whole of stage 2, from one teacher."""
    # A weight near that of the other terms: rounding that enters through a larger one decides the path of six steps.
    flags = ("--config.distill.warmup=0.0", "--config.model.align=none", "--config.distill.hfd.taps=('C3','C4','A')")
    flags = (*flags, "--config.distill.hfd.weight=2.0")
    runs.main(tmp_path / "plain", scenes_dir, *flags, baselines=())
    teacher = f"--config.teacher.checkpoint={tmp_path / 'plain' / 'checkpoints' / 'teacher'}"
    more = (*flags, teacher, "--config.distill.cache=True")
    assert "teacher's features: 24 tiles" in runs.main(tmp_path / "cached", scenes_dir, *more, baselines=()).stdout
    plain, cached = (runs.log_of(tmp_path / name, "student") for name in ("plain", "cached"))
    assert plain.keys() == cached.keys()
    for step in plain:
        # 11 bits of the teacher's features, through six steps.
        for term in ("ce", "dice", "hfd"):
            assert cached[step][term] == pytest.approx(plain[step][term], rel=0.01), (step, term)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("augment.eo_gain=0.1", "config.distill.cache is True: stored features know no gain of the optical image"),
        ("distill.method=('hfd','kd')", "config.distill.cache is True: features are stored, logits are not, which kd"),
        ("distill.method=()", "config.distill.cache is True: distill.method is empty"),
        ("data.crop=32", "config.distill.cache is True: needs crops that hold whole tiles; data.crop is 32"),
    ],
)
def test_what_the_cache_cannot_do_is_refused(tmp_path, scenes_dir, flag, message):
    flags = ("--config.distill.cache=True", "--config.distill.hfd.taps=('C3','A')", f"--config.{flag}")
    done = runs.main(tmp_path / "run", scenes_dir, *flags, check=False)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
