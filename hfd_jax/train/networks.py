"""Which networks a config trains, in which order, and what each of them is."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from hfd_jax.core.options import implied, options_of
from hfd_jax.core.workdir import Workdir, jsonable
from hfd_jax.distill.registry import METHODS
from hfd_jax.models.registry import ARCHITECTURES, implied_options

BASELINES = {"sar_only": "SAR-only student", "teacher_init": "student from teacher's weights"}


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """One network to train.

    Attributes:
      name: "teacher", "student" or the name of a baseline; also its folder below checkpoints/.
      sensor: the input it reads, "eo" or "sar".
      distils: whether the teacher supervises it.
      from_teacher: whether it starts from the teacher's weights.
      title: its name in tables and figures.
    """

    name: str
    sensor: str
    distils: bool
    from_teacher: bool
    title: str

    @property
    def needs_teacher(self) -> bool:
        return self.distils or self.from_teacher


def teacher_spec() -> NetworkSpec:
    return NetworkSpec("teacher", "eo", distils=False, from_teacher=False, title="teacher (EO)")


def student_spec(config: ConfigDict) -> NetworkSpec:
    names = " + ".join(METHODS[method].title for method in config.distill.method)
    title = f"{names} student (SAR)" if names else "student without distillation (SAR)"
    return NetworkSpec(
        "student", "sar", distils=bool(names), from_teacher=config.student.init == "teacher", title=title
    )


def baseline_spec(name: str) -> NetworkSpec:
    """A network trained on SAR beside the student; `name` is a key of BASELINES or ARCHITECTURES."""
    title = BASELINES[name] if name in BASELINES else f"{ARCHITECTURES[name].title} (SAR)"
    return NetworkSpec(name, "sar", distils=False, from_teacher=name == "teacher_init", title=title)


def networks_to_train(config: ConfigDict) -> list[NetworkSpec]:
    """The networks that config.stage asks for, in training order."""
    students = [baseline_spec(name) for name in config.baselines] + [student_spec(config)]
    specs = {"teacher": [teacher_spec()], "student": students, "all": [teacher_spec(), *students]}[config.stage]
    return [spec for spec in specs if not (spec.name == "teacher" and config.teacher.checkpoint)]


def teacher_folder(config: ConfigDict, workdir: Workdir) -> str:
    """The folder of the teacher's checkpoints."""
    return config.teacher.checkpoint or workdir.checkpoints("teacher")


def pretrained_file(config: ConfigDict, spec: NetworkSpec) -> str:
    """The encoder file that a network starts from, "" for none. SAR baselines start as the student does."""
    if spec.from_teacher:
        return ""
    return (config.teacher if spec.sensor == "eo" else config.student).pretrained


def architecture_name(config: ConfigDict, spec: NetworkSpec) -> str:
    """The key of ARCHITECTURES for a network."""
    if spec.name == "teacher":
        return config.model.architecture
    return spec.name if spec.name in ARCHITECTURES else config.student.architecture or config.model.architecture


def declared_fields() -> dict[str, Any]:
    """The fields of config.model and config.distill that networks and methods declare, with what their absence implies.

    Configs are completed with it if they were written before an option was declared.
    """
    return jsonable(
        {"model": implied_options(), "distill": {name: implied(method) for name, method in METHODS.items()}}
    )


def model_config(config: ConfigDict, spec: NetworkSpec) -> dict[str, Any]:
    """The architecture of a network and the fields of config.model that it uses."""
    name = architecture_name(config, spec)
    values = student_options(config) if spec.sensor == "sar" else config.model
    return {"architecture": name} | {field: values[field] for field in options_of(ARCHITECTURES[name])}


def student_options(config: ConfigDict) -> dict[str, Any]:
    """The fields of config.model as they apply to the student and the SAR baselines."""
    values = dict(config.model)
    return values | {"width": config.student.width} if config.student.width else values
