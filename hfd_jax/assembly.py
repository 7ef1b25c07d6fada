"""From a config (or a checkpoint's record) to objects: network, input, objective, optimiser."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hfd_jax import optim
from hfd_jax.data.augment import Augmentation
from hfd_jax.data.catalogue import Dataset, SceneSource
from hfd_jax.data.facts import BandStatistics, Facts, Statistics
from hfd_jax.data.inputs import InputSpec
from hfd_jax.data.normalise import Normalisation
from hfd_jax.data.pipeline import Reading, Ref, training_pools
from hfd_jax.data.scenes import SceneOptions
from hfd_jax.distill.methods import METHODS, Combined
from hfd_jax.errors import CheckpointError, nearest
from hfd_jax.models import architectures
from hfd_jax.models.architectures import ARCHITECTURES
from hfd_jax.models.interface import SegmentationNetwork
from hfd_jax.steps import Objective, Setup
from hfd_jax.workdir import Workdir

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Run:
    """One network to train.

    Attributes:
      name: "teacher", "student", or a baseline's name; also its folder below checkpoints/.
      sensor: "eo" or "sar".
      distils: the teacher supervises it.
      from_teacher: starts from the teacher's weights.
      title: for tables and pictures.
    """

    name: str
    sensor: str
    distils: bool
    from_teacher: bool
    title: str

    @property
    def needs_teacher(self) -> bool:
        return self.distils or self.from_teacher


def teacher_run() -> Run:
    return Run("teacher", "eo", distils=False, from_teacher=False, title="teacher (EO)")


def student_run(config: ConfigDict) -> Run:
    names = " + ".join(METHODS[method].title for method in config.distill.method)
    title = f"{names} student (SAR)" if names else "student without distillation (SAR)"
    return Run("student", "sar", distils=bool(names), from_teacher=config.student.init == "teacher", title=title)


BASELINES = {"sar_only": "SAR-only student", "teacher_init": "student from teacher's weights"}


def baseline_run(name: str) -> Run:
    """What is trained on SAR beside the distilled student; `name` is one of BASELINES or of ARCHITECTURES."""
    title = BASELINES[name] if name in BASELINES else f"{ARCHITECTURES[name].title} (SAR)"
    return Run(name, "sar", distils=False, from_teacher=name == "teacher_init", title=title)


def stages(config: ConfigDict) -> list[Run]:
    """The networks that config.stage asks for, in order."""
    students = [baseline_run(name) for name in config.baselines] + [student_run(config)]
    runs = {"teacher": [teacher_run()], "student": students, "all": [teacher_run(), *students]}[config.stage]
    return [run for run in runs if not (run.name == "teacher" and config.teacher.checkpoint)]


def pretrained_file(config: ConfigDict, run: Run) -> str:
    """The encoder that a network starts from; "" for none. A SAR baseline starts as the student does."""
    if run.from_teacher:
        return ""
    return (config.teacher if run.sensor == "eo" else config.student).pretrained


def scene_source(scenes: ConfigDict) -> SceneSource:
    counts = {split: scenes[split] for split in ("train", "validation", "test")}
    return SceneSource(SceneOptions(**{k: v for k, v in scenes.items() if k not in counts}), **counts)


def architecture(config: ConfigDict, run: Run) -> str:
    """Which of ARCHITECTURES a network is."""
    if run.name == "teacher":
        return config.model.architecture
    return run.name if run.name in ARCHITECTURES else config.student.architecture or config.model.architecture


def describe_model(config: ConfigDict, run: Run) -> dict[str, Any]:
    """The architecture of a network and those fields of config.model that it has a use for."""
    name = architecture(config, run)
    fields = [field for field in ARCHITECTURES[name].fields if field in config.model]
    return {"architecture": name} | {field: config.model[field] for field in fields}


def make_model(config: ConfigDict, run: Run, classes: int, axis_name: str | None = None) -> SegmentationNetwork:
    """The network of a run."""
    options = {"dtype": DTYPES[config.dtype], "axis_name": axis_name, "remat": config.train.remat}
    options |= {"pool_size": config.data.crop, "classes": classes}
    return architectures.build(describe_model(config, run), **options)


def teacher_dtype(config: ConfigDict, teacher: SegmentationNetwork) -> Any:
    """In which the frozen teacher computes."""
    return DTYPES[config.teacher.dtype] if config.teacher.dtype else teacher.dtype


def chosen_bands(config: ConfigDict, facts: Facts, sensor: str) -> tuple[str, ...]:
    """The names of the bands that `sensor` delivers to the network, in order."""
    return tuple(config.data[f"{sensor}_bands"]) or getattr(facts, f"{sensor}_bands")


def band_index(bands: tuple[str, ...], facts: Facts, sensor: str) -> tuple[int, ...]:
    stored = getattr(facts, f"{sensor}_bands")
    return tuple(stored.index(band) for band in bands)


def make_inputs(config: ConfigDict, facts: Facts, statistics: Statistics) -> InputSpec:
    def select(sensor: str) -> BandStatistics:
        return getattr(statistics, sensor).select(band_index(chosen_bands(config, facts, sensor), facts, sensor))

    return InputSpec(
        sar=select("sar"),
        eo=select("eo"),
        normalisation=Normalisation(sar_unit=facts.sar_unit, **config.normalise.to_dict()),
        augmentation=Augmentation(**config.augment.to_dict()),
        look_axis=facts.look_axis,
    )


def teacher_folder(config: ConfigDict, workdir: Workdir) -> str:
    """Where the teacher's checkpoints lie."""
    return config.teacher.checkpoint or workdir.checkpoints("teacher")


def labelled_tiles(config: ConfigDict, dataset: Dataset) -> tuple[list[Ref], list[Ref]]:
    """The training tiles as (labelled, unlabelled)."""
    return training_pools(dataset, config.data.label_share, config.seed)


def make_pools(config: ConfigDict, dataset: Dataset, run: Run) -> list[tuple[list[Ref], float]]:
    """A distilling student draws from labelled and unlabelled pairs; every other network from labelled ones.

    Where labels are plentiful their share of a batch is at least their share of the tiles: no unlabelled tile is seen
    more often than a labelled one.
    """
    labelled, unlabelled = labelled_tiles(config, dataset)
    if not (run.distils and unlabelled and config.data.labelled_per_batch < 1):
        return [(labelled, 1.0)]
    share = max(config.data.labelled_per_batch, len(labelled) / (len(labelled) + len(unlabelled)))
    return [(labelled, share), (unlabelled, 1 - share)]


def make_reading(config: ConfigDict, facts: Facts) -> Reading:
    index = {
        f"{sensor}_index": band_index(chosen_bands(config, facts, sensor), facts, sensor) for sensor in ("sar", "eo")
    }
    return Reading(**index, threads=config.data.threads, workers=config.data.workers)


def make_objective(config: ConfigDict, run: Run, steps: int, class_pixels: Callable[[], tuple[int, ...]]) -> Objective:
    """`class_pixels` is called only where class weights are wanted: it may read every label."""
    methods = config.distill.method if run.distils else ()
    return Objective(
        ce=config.loss.ce,
        dice=config.loss.dice,
        class_weights=class_weights(class_pixels()) if config.loss.class_weights == "inverse_sqrt" else None,
        distil=tuple((method, config.distill[method].weight) for method in methods),
        warmup_steps=round(config.distill.warmup * steps),
        fading=tuple(method for method in methods if config.distill[method].get("fade", False)),
        steps=steps,
    )


def class_weights(class_pixels: tuple[int, ...]) -> tuple[float, ...]:
    """1 / sqrt(frequency), scaled to mean 1 over the classes that occur; a class without pixels gets 0."""
    pixels = np.asarray(class_pixels, np.float64)
    weights = np.where(pixels > 0, 1 / np.sqrt(np.maximum(pixels, 1)), 0.0)
    return tuple(float(w) for w in weights / weights[pixels > 0].mean())


def make_distiller(config: ConfigDict, run: Run, axis_name: str | None = None) -> Combined | None:
    if not run.distils:
        return None
    return Combined(tuple(make_method(config, method, axis_name) for method in config.distill.method))


def make_method(config: ConfigDict, method: str, axis_name: str | None = None) -> nn.Module:
    """A method's fields in the config are its module's attributes, but for those that `make_objective` reads."""
    options = {k: v for k, v in config.distill[method].items() if k not in ("weight", "fade")}
    return METHODS[method](axis_name=axis_name, **options)


def make_schedule(config: ConfigDict, steps: int):
    return optim.learning_rate(
        config.optim.learning_rate, config.optim.schedule, steps, round(config.optim.warmup * steps)
    )


def make_optimiser(config: ConfigDict, steps: int):
    return optim.make_optimiser(make_schedule(config, steps), config.optim.weight_decay, config.optim.clip_norm)


def make_record(
    config: ConfigDict, run: Run, dataset: Dataset, inputs: InputSpec, versions: dict[str, str]
) -> dict[str, Any]:
    """What a checkpoint says of itself; enough to rebuild network and input without the config."""
    return {
        "network": run.name,
        "title": run.title,
        "sensor": run.sensor,
        "model": describe_model(config, run),
        "dtype": config.dtype,
        "bands": {sensor: list(chosen_bands(config, dataset.facts, sensor)) for sensor in ("sar", "eo")},
        "facts": dataset.facts.to_dict(),
        "tiles": dataset.sizes,
        "inputs": dataclasses.asdict(inputs),
        "config": config.to_dict(),
        "versions": versions,
    }


def cache_identity(config: ConfigDict, setup: Setup, record: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """All that decides the teacher's stored features, of a student whose checkpoints carry this record."""
    return {
        "teacher": record["teacher"],
        "dtype": jnp.dtype(setup.teacher.dtype).name,
        "facts": jsonable(record["facts"]),
        "tiles": record["tiles"],
        "files": dataset.files(),
        "eo": jsonable(dataclasses.asdict(setup.inputs.eo)),
        "clip": setup.inputs.normalisation.clip,
        "crop": config.data.crop,
        "flips": config.augment.flips,
        "taps": list(setup.distiller.taps),
    }


def jsonable(values: Any) -> Any:
    """As it comes back from a JSON file: tuples become lists."""
    return json.loads(json.dumps(values))


def described_model(record: dict[str, Any]) -> dict[str, Any]:
    """What `describe_model` said of a checkpoint's network; CheckpointError for an architecture that is not known."""
    # Records that are older than the choice do not name theirs.
    model = {"architecture": architectures.DEFAULT, **record["model"]}
    if model["architecture"] not in ARCHITECTURES:
        found = model["architecture"]
        raise CheckpointError(f"{record['title']} is of architecture {found!r}; {nearest(found, ARCHITECTURES)}")
    return model


def model_of(record: dict[str, Any]) -> SegmentationNetwork:
    """The network that a record describes; CheckpointError for an architecture that is not known."""
    options = {"dtype": DTYPES[record["dtype"]], "pool_size": record["config"]["data"]["crop"]}
    return architectures.build(described_model(record), classes=len(record["facts"]["class_names"]), **options)


def inputs_of(record: dict[str, Any]) -> InputSpec:
    """The input that a record describes."""
    stored = record["inputs"]
    bands = {sensor: BandStatistics(**{k: tuple(v) for k, v in stored[sensor].items()}) for sensor in ("sar", "eo")}
    return InputSpec(
        normalisation=Normalisation(**stored["normalisation"]),
        augmentation=Augmentation(**stored["augmentation"]),
        look_axis=stored["look_axis"],
        **bands,
    )
