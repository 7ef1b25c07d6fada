"""Small outputs of a student and a teacher, and distillation methods compiled for them."""

import functools

import jax
import numpy as np

from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.distill.base import Outputs
from hfd_jax.distill.registry import METHODS, Combined

KEY = jax.random.key(5)
# Options for small methods with one tap: 4 x 4 positions for 8 x 8 pixels.
SMALL = {
    "hfd": {"taps": ("A",)},
    "kd": {"temperature": 2.0},
    "skd": {"nodes": 2},
    "cirkd": {"nodes": 2, "pixels": 6, "regions": 4, "contrasted_pixels": 9, "contrasted_regions": 9},
    "aicsd": {"temperature": 2.0},
}
NEEDS_LABELS = ("ifvd",)
WITHOUT_PARAMETERS = ("kd", "attention", "cwd", "skd", "ifvd", "aicsd", "fakd")  # cwd: when it compares logits


@functools.cache
def module(name, **options):
    return METHODS[name](**{**SMALL.get(name, {}), **options})


def make_pair(batch=2, channels=(3, 4), seed=0):
    """Returns (student, teacher, label, valid) with some invalid cells, one of them at the threshold of half its pixels."""
    rng = np.random.default_rng(seed)

    def outputs(count):
        feature, logits = rng.normal(size=(batch, 4, 4, count)), rng.normal(size=(batch, 8, 8, 3))
        return Outputs({"A": feature.astype(np.float32)}, 2 * logits.astype(np.float32))

    student, teacher = (outputs(count) for count in channels)
    label = rng.integers(0, 3, (batch, 8, 8)).astype(np.int32)
    label[:, 6:] = IGNORE_LABEL
    valid = np.ones((batch, 8, 8), bool)
    valid[:, :2, :5] = False
    valid[0, 2, 2:4] = valid[0, 3, 2] = False
    return student, teacher, label, valid


def cells(valid):
    """[B, 4, 4] bool: cells of 2 x 2 pixels of which at least half are valid."""
    return valid.reshape(-1, 4, 2, 4, 2).sum((2, 4)) >= 2


@functools.cache
def variables_of(name, **options):
    return jax.device_get(jax.jit(Combined((module(name, **options),)).init)(jax.random.key(0), *make_pair()))


@functools.cache
def compiled(name, train=True):
    """(variables, student, teacher, label, valid) -> terms, gradients of student and teacher, updated collections."""
    method = module(name)

    def loss(student, teacher, variables, label, valid):
        own = {collection: tree[name] for collection, tree in variables.items() if name in tree}
        mutable = ["batch_stats", "memory"] if train else []
        found = method.apply(own, student, teacher, label, valid, train=train, mutable=mutable, rngs={"noise": KEY})
        return found[0][name], found

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))

    def call(variables, student, teacher, label, valid):
        (_, (terms, changed)), gradients = gradient(student, teacher, variables, label, valid)
        return jax.device_get((terms, *gradients, changed))

    return call


def run(name, pair, train=True):
    return compiled(name, train)(variables_of(name), *pair)


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)])


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def kl(p, q, axis=-1):
    return (p * np.log(p / q)).sum(axis)


def length_one(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
