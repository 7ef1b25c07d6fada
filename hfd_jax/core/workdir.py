"""The folder of a run: its files, its lock and its config."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from hfd_jax.core.errors import WorkdirError, writing
from hfd_jax.core.locks import locked

# Fields that do not change the results of a finished stage; they may differ when a run is resumed.
FREE = (
    "stage",
    "baselines",
    "parallel",
    "distributed",
    "data.dir",
    "data.threads",
    "data.workers",
    "teacher.checkpoint",  # only its location; the checkpoints identify the teacher
    "distill.cache",  # a removed field, which changed results only by rounding to float16
    "data.labelled_per_batch",  # a removed field; a student that it began to train is not continued
    "train",
    "eval",
)
# Fields (or prefixes of them) that the training of a teacher does not read.
STUDENT_ONLY = ("student.", "distill.", "data.unlabelled_ratio")
# Fields added later, with the values that apply to a config.json written without them.
_LATER = {
    "model": {"architecture": "hfdnet", "rates": [6, 12, 18]},
    "student": {"architecture": "", "learning_rate": 0.0, "width": 0},
    "data": {
        "unlabelled_ratio": 1.0,
        "scenes": {"regions": 0, "nuisance": 0.0, "clouds": 0.0, "label_shift": 0.0, "label_change": 0.0},
    },
    "distill": {"max_share": 1.0, "min_confidence": 0.0},
}
_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "clu", "ml-collections",
    "numpy", "scipy", "rasterio",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The paths of a run's files below `root`."""

    root: str

    @property
    def config(self) -> str:
        return os.path.join(self.root, "config.json")

    @property
    def versions(self) -> str:
        return os.path.join(self.root, "versions.json")

    @property
    def metrics(self) -> str:
        return os.path.join(self.root, "metrics.jsonl")

    @property
    def timing(self) -> str:
        return os.path.join(self.root, "timing.jsonl")

    @property
    def evaluation(self) -> str:
        return os.path.join(self.root, "evaluation.json")

    @property
    def summaries(self) -> str:
        return os.path.join(self.root, "tensorboard")

    def checkpoints(self, network: str) -> str:
        return os.path.join(self.root, "checkpoints", network)

    def figure(self, name: str) -> str:
        folder = os.path.join(self.root, "figures")
        with writing(folder):
            os.makedirs(folder, exist_ok=True)
        return os.path.join(folder, name)


def check_claim(workdir: Workdir, config: ConfigDict, declared: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Raises WorkdirError if the folder holds a run with another config; the message names the differing fields."""
    if os.path.exists(workdir.root) and not os.path.isdir(workdir.root):
        raise WorkdirError(f"{workdir.root} is a file; --workdir names a folder")
    if not os.path.exists(workdir.config):
        return
    stored = read_config(workdir, declared)
    differing = {
        field: line
        for field, line in differences(stored, _jsonable(config))
        if not (_is_free(field) or _is_unused(field, config))
    }
    if not differing:
        return
    message = (
        f"{workdir.root} was created with a different config; choose another --workdir or the same config. Differing: "
        + "; ".join(differing.values())
    )
    teacher = stored["teacher"]["checkpoint"] or workdir.checkpoints("teacher")
    finished = os.path.join(teacher, str(stored["teacher"]["steps"]))
    if all(field.startswith(STUDENT_ONLY) for field in differing) and os.path.isdir(finished):
        pretrained = " --config.teacher.pretrained=''" if stored["teacher"]["pretrained"] else ""
        message += (
            f". To reuse this run's teacher: --workdir=NEW_FOLDER --config.teacher.checkpoint={shlex.quote(teacher)}"
        )
        message += pretrained
    raise WorkdirError(message)


def claim(workdir: Workdir, config: ConfigDict, declared: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Checks the workdir with `check_claim`, then writes config.json and versions.json."""
    check_claim(workdir, config, declared)
    with writing(workdir.root):
        os.makedirs(workdir.root, exist_ok=True)
    write_json(workdir.config, _jsonable(config))
    write_json(workdir.versions, package_versions())


@contextlib.contextmanager
def sole_run(workdir: Workdir) -> Iterator[None]:
    """Creates the folder and locks it; the lock also ends with the process.

    Raises:
      WorkdirError: another run uses the folder, or it cannot be written.
    """
    with writing(workdir.root):
        os.makedirs(workdir.root, exist_ok=True)

    def refuse() -> None:
        raise WorkdirError(f"{workdir.root}: in use by another run; wait for it or stop it")

    with locked(os.path.join(workdir.root, "lock"), refuse):
        yield


def package_versions() -> dict[str, str]:
    """Returns the installed versions of the packages that affect results."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def program_digest() -> str:
    """Returns a digest of this package's code and of the versions of the packages that affect results."""
    digest = hashlib.blake2b(digest_size=16)
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    digest.update(json.dumps(package_versions(), sort_keys=True).encode())
    return digest.hexdigest()


def read_json(path: str) -> Any:
    """Reads a JSON file. Raises WorkdirError if it is missing or invalid."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WorkdirError(f"{path}: missing; is {os.path.dirname(path)} the workdir of a run?") from error
    except OSError as error:
        raise WorkdirError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise WorkdirError(f"{path}: not valid JSON ({error})") from error


def read_config(workdir: Workdir, declared: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Reads the config of a run and fills in the fields that it was written without.

    Args:
      workdir: the run's.
      declared: defaults of the fields that later code declared, as a nested dict.

    Returns:
      Nested dict, with lists where the config has tuples.

    Raises:
      WorkdirError: see `read_json`.
    """
    return completed(completed(read_json(workdir.config), _LATER), declared)


def completed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict `values` with the entries of `defaults` that it lacks."""
    filled = dict(values)
    for key, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(filled.get(key, {}), Mapping):
            filled[key] = completed(filled.get(key, {}), default)
        else:
            filled.setdefault(key, default)
    return filled


def write_json(path: str, values: Any) -> None:
    """Writes JSON atomically: a killed run leaves either the old or the new file."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with writing(path):
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(values, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def jsonable(values: Any) -> Any:
    """Returns `values` as they read back from a JSON file: tuples become lists."""
    return json.loads(json.dumps(values))


def differences(stored: Any, current: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Returns (field, "field: <stored value> stored, <current value> now") for each difference of two nested dicts."""
    if isinstance(stored, dict) and isinstance(current, dict):
        lines = []
        for key in sorted(stored.keys() | current.keys()):
            lines += differences(stored.get(key), current.get(key), f"{prefix}{key}.")
        return lines
    field = prefix.rstrip(".")
    return [] if stored == current else [(field, f"{field}: {stored!r} stored, {current!r} now")]


def _jsonable(config: ConfigDict) -> Any:
    return json.loads(config.to_json_best_effort())


def _is_free(field: str) -> bool:
    return any(field == free or field.startswith(free + ".") for free in FREE)


def _is_unused(field: str, config: ConfigDict) -> bool:
    """Whether the field belongs to a distillation method that the config does not use."""
    part, _, rest = field.partition(".")
    return part == "distill" and "." in rest and rest.split(".")[0] not in config.distill.method
