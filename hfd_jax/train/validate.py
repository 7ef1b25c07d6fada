"""Validates a config before anything is computed or written: one error that names the field."""

import math
from collections.abc import Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from hfd_jax.core.errors import ConfigError, nearest
from hfd_jax.core.options import options_of
from hfd_jax.core.parallel import KINDS
from hfd_jax.data.facts import Facts
from hfd_jax.data.normalise import SAR_FILTERS
from hfd_jax.data.simulator import SceneOptions
from hfd_jax.distill.base import LOGITS, chosen_taps
from hfd_jax.distill.registry import METHODS
from hfd_jax.models.base import STRIDE
from hfd_jax.models.registry import ARCHITECTURES, DTYPES, default_options
from hfd_jax.train.networks import BASELINES, student_options
from hfd_jax.train.optimiser import SCHEDULES

_CHOICES = {
    "stage": ("teacher", "student", "all"),
    "dtype": tuple(DTYPES),
    "parallel": KINDS,
    "normalise.sar_filter": SAR_FILTERS,
    "loss.class_weights": ("none", "inverse_sqrt"),
    "optim.schedule": SCHEDULES,
    "student.init": ("random", "teacher"),
    "teacher.which": ("latest", "best"),
    "teacher.dtype": ("", *DTYPES),
    "eval.checkpoint": ("latest", "best"),
}
_NAMES = ("baselines", "data.sar_bands", "data.eo_bands", "distill.method")  # tuples of names
_POSITIVE = (
    "data.crop",
    "normalise.sar_looks",
    "data.batch_size",
    "optim.learning_rate",
    "teacher.steps",
    "student.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_bad_steps",
    "eval.batch_size",
    "data.scenes.train",
    "data.scenes.test",
)
_NOT_NEGATIVE = (
    "seed",
    "data.scenes.seed",
    "data.unlabelled_ratio",
    "data.threads",
    "data.workers",
    "data.scenes.validation",
    "augment.sar_gain_db",
    "augment.speckle_looks",
    "loss.ce",
    "loss.dice",
    "optim.weight_decay",
    "student.learning_rate",
    "student.width",
    "optim.clip_norm",
    "eval.window",
    "eval.panels",
)
_SHARES = (
    "data.label_share",
    "augment.eo_gain",
    "optim.warmup",
    "distill.warmup",
    "distill.max_share",
    "distill.min_confidence",
)


def check_fields(config: ConfigDict, devices: int = 1, trains: bool = True) -> None:
    """Checks everything that does not depend on the data set.

    Args:
      config: with the fields of configs/default.py.
      devices: number of devices of all processes.
      trains: False if networks are only evaluated; the training batch is then not checked.

    Raises:
      ConfigError: names the field, its value and what is expected.
    """
    for field in _NAMES:
        if not isinstance(_get(config, field), tuple | list):
            _fail(config, field, f"expected a tuple of names such as ({_get(config, field)!r},)")
    registered = {"model.architecture": tuple(ARCHITECTURES), "student.architecture": ("", *ARCHITECTURES)}
    for field, choices in (_CHOICES | registered).items():
        if _get(config, field) not in choices:
            _fail(config, field, nearest(_get(config, field), choices))
    members = {"baselines": (*BASELINES, *ARCHITECTURES), "distill.method": tuple(METHODS)}
    for field, choices in members.items():
        for value in _get(config, field):
            if value not in choices:
                _fail(config, field, f"{value!r} is unknown; {nearest(value, choices)}")
    for field, value in _fields(config):
        members = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(member, float) and not math.isfinite(member) for member in members):
            _fail(config, field, "expected a finite number")
    for fields, good, expected in (
        (_POSITIVE, lambda x: x > 0, "expected more than 0"),
        (_NOT_NEGATIVE, lambda x: x >= 0, "expected 0 or more"),
        (_SHARES, lambda x: 0 <= x <= 1, "expected a share, 0 to 1"),
    ):
        for field in fields:
            if not good(_get(config, field)):
                _fail(config, field, expected)
    _check_combinations(config, devices, trains)


def _check_combinations(config: ConfigDict, devices: int, trains: bool) -> None:
    for field in ("data.crop", "eval.window"):
        size = _get(config, field)
        if size % STRIDE:
            _fail(
                config,
                field,
                f"expected a multiple of the network's stride {STRIDE}; nearest: {_multiples(size, STRIDE)}",
            )
    for field in ("data.batch_size", "eval.batch_size") if trains else ("eval.batch_size",):
        size = _get(config, field)
        if size % devices:
            _fail(config, field, f"expected a multiple of the {devices} devices; nearest: {_multiples(size, devices)}")
    if not config.data.label_share > 0:
        _fail(config, "data.label_share", "at least some labels are needed")
    beside = config.data.unlabelled_ratio * config.data.batch_size
    if trains and beside % devices:
        _fail(
            config,
            "data.unlabelled_ratio",
            f"data.batch_size = {config.data.batch_size} times this is {beside:g}; expected "
            + ("an integer" if devices == 1 else f"a multiple of the {devices} devices"),
        )
    if config.loss.ce + config.loss.dice <= 0:
        _fail(config, "loss.ce", "loss.ce and loss.dice are both 0; labels would teach nothing")
    _check_starts(config)
    _check_distillation(config)
    _check_architectures(config)
    for field in ("eval.checkpoint",) if config.teacher.checkpoint else ("eval.checkpoint", "teacher.which"):
        if _get(config, field) == "best" and not config.train.eval_every:
            _fail(config, field, "expected train.eval_every other than 0, which selects the best checkpoint")
    if config.teacher.checkpoint and config.stage == "teacher":
        _fail(
            config,
            "teacher.checkpoint",
            "stage 'teacher' trains a new teacher; leave the field empty or choose stage 'student'",
        )
    if config.eval.split == "unlabelled":
        _fail(config, "eval.split", "expected a split with labels")
    if config.train.eval_every < -1:
        _fail(config, "train.eval_every", "expected a number of steps, 0 (never) or -1 (at every checkpoint)")
    if config.train.eval_every > 0 and config.train.eval_every % config.train.checkpoint_every:
        _fail(
            config,
            "train.eval_every",
            f"expected a multiple of train.checkpoint_every = {config.train.checkpoint_every}",
        )
    if config.data.name == "scenes":
        try:
            SceneOptions(**{k: v for k, v in config.data.scenes.items() if k not in ("train", "validation", "test")})
        except ValueError as error:
            raise ConfigError(f"config.data.{error}") from error


def _check_starts(config: ConfigDict) -> None:
    if config.teacher.checkpoint and config.teacher.pretrained:
        _fail(config, "teacher.pretrained", "teacher.checkpoint already names a teacher; leave one of the two empty")
    if config.student.pretrained and config.student.init == "teacher":
        _fail(config, "student.pretrained", "student.init is 'teacher'; leave one of the two unset")


def _check_distillation(config: ConfigDict) -> None:
    methods = config.distill.method
    if len(set(methods)) < len(methods):
        _fail(config, "distill.method", "a method is named twice")
    known = tuple(dict.fromkeys(tap for network in ARCHITECTURES.values() for tap in network.tap_strides))
    for method in METHODS:
        for option, why in METHODS[method].problems(config.distill[method], sorted(known, key=_encoder_first)):
            if option != "weight":
                _fail(config, f"distill.{method}.{option}", why)
            elif method in methods:
                _fail(config, f"distill.{method}.weight", f"{why}; to drop a method, remove it from distill.method")


def _encoder_first(tap: str) -> tuple[bool, str]:
    return not tap.startswith("C"), tap


def _plain(value: Any) -> Any:
    """Turns the lists of a config that was read from a file into tuples."""
    return tuple(value) if isinstance(value, list) else value


def _check_architectures(config: ConfigDict) -> None:
    teacher = config.model.architecture
    student = config.student.architecture or teacher
    if student != teacher:
        why = f"the student is {student!r}, the teacher {teacher!r}: its weights do not fit"
        if config.student.init == "teacher":
            _fail(config, "student.init", why)
        if "teacher_init" in config.baselines:
            _fail(config, "baselines", f"'teacher_init' starts from the teacher's weights; {why}")
    names = sorted({teacher, student, *config.baselines} & ARCHITECTURES.keys())
    used = set().union(*(options_of(ARCHITECTURES[name]) for name in names))
    for field, default in default_options().items():
        if field not in used and _plain(config.model[field]) != default:
            _fail(
                config,
                f"model.{field}",
                f"{' and '.join(names)} {'do' if len(names) > 1 else 'does'} not use it; leave it at {default!r}",
            )
    for name in names:
        for field, why in ARCHITECTURES[name].problems(config.model):
            _fail(config, f"model.{field}", f"{why} ({name})")
    if config.student.width:
        _check_student_width(config, sorted({student, *config.baselines} & ARCHITECTURES.keys()))
    if config.stage != "teacher":
        check_taps(config, student)
        if not config.teacher.checkpoint:
            check_taps(config, teacher)


def _check_student_width(config: ConfigDict, names: list[str]) -> None:
    for name in names:
        if "width" not in options_of(ARCHITECTURES[name]):
            _fail(config, "student.width", f"{name} has no width; leave it at 0")
        for _, why in ARCHITECTURES[name].problems(student_options(config)):
            _fail(config, "student.width", f"{why} ({name})")


def check_taps(config: ConfigDict, architecture: str) -> None:
    """Raises ConfigError if an architecture lacks a tap that config.distill compares."""
    strides = ARCHITECTURES[architecture].strides(config.model)
    chosen = ((method, *pair) for method in config.distill.method for pair in chosen_taps(config.distill[method]))
    for method, option, taps in chosen:
        field = f"distill.{method}.{option}"
        for tap in taps:
            if tap not in (*strides, LOGITS):
                known = ", ".join(f"{name} (stride {stride})" for name, stride in strides.items())
                _fail(config, field, f"{architecture} has no tap {tap!r}; expected some of: {known}")
            if config.data.crop <= strides.get(tap, 1):
                _fail(config, field, f"{tap} has a single position in a crop of {config.data.crop}")


def check_against_data(config: ConfigDict, facts: Facts, splits: Collection[str], largest: tuple[int, int]) -> None:
    """Checks what depends on the data set; raises ConfigError like `check_fields`.

    Args:
      config: to check.
      facts: the facts of the data set.
      splits: the splits of the data set.
      largest: height and width of its largest training tile, pixels.
    """
    if "train" not in splits:
        _fail(config, "data.name", f"{facts.name} has no labelled training tile; its splits: {', '.join(splits)}")
    if config.data.crop >= max(largest) + STRIDE:
        _fail(
            config,
            "data.crop",
            f"the largest training tile has {largest[0]} x {largest[1]} pixels; a larger crop adds only padding",
        )
    for sensor in ("sar", "eo"):
        field, stored = f"data.{sensor}_bands", getattr(facts, f"{sensor}_bands")
        bands = _get(config, field)
        for band in bands:
            if band not in stored:
                _fail(config, field, f"{facts.name} has no {sensor} band {band!r}; {nearest(band, stored)}")
        if len(set(bands)) < len(bands):
            _fail(config, field, "a band is named twice")
    if facts.sar_unit != "db":
        for field in ("augment.sar_gain_db", "augment.speckle_looks"):
            if _get(config, field):
                _fail(config, field, f"needs SAR in dB; {facts.name} is in {facts.sar_unit!r} units")
    needed = {"eval.split": config.eval.split}
    if config.train.eval_every > 0:
        needed["train.eval_every"] = "validation"
    for field in ("eval.checkpoint", "teacher.which"):
        if _get(config, field) == "best" and not (field == "teacher.which" and config.teacher.checkpoint):
            needed[field] = "validation"
    for field, split in needed.items():
        if split not in splits:
            _fail(config, field, f"{facts.name} has no split {split!r}; it has: {', '.join(splits)}")


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("part.field", value) for every field."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _get(config: ConfigDict, field: str) -> Any:
    for part in field.split("."):
        config = config[part]
    return config


def _fail(config: ConfigDict, field: str, why: str) -> None:
    raise ConfigError(f"config.{field} is {_get(config, field)!r}: {why}")


def _multiples(value: int, of: int) -> str:
    below, above = value // of * of, -(-value // of) * of
    return f"{below} or {above}" if below else str(above)
