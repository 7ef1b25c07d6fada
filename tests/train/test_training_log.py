"""Skipped steps are logged, left out of the means, and stop the run if there are too many in a row."""

import json

import pytest

from hfd_jax.core.errors import DivergedError
from hfd_jax.train.training_log import TrainingLog, culprits, faults_of, mean_of

NAN, INF = float("nan"), float("inf")


def row(bad_steps=0, skipped=0, **values):
    return {
        "loss": 1.0,
        "ce": 0.5,
        "share_ce": 0.5,
        "grad_norm": 2.0,
        "bad_steps": bad_steps,
        "skipped": skipped,
    } | values


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"loss": NAN, "ce": 0.5, "hfd": INF, "hfd_C3": INF, "grad_norm": NAN, "share_ce": NAN}, ["hfd", "hfd_C3"]),
        ({"grad_norm": INF}, ["gradient"]),
        ({}, ["batch statistics"]),
    ],
)
def test_terms_that_are_not_finite_are_named(values, names):
    assert culprits(row(1, 1, **values)) == names


def test_means_exclude_skipped_steps():
    rows = [row(ce=1.0), row(1, 1, ce=NAN), row(0, 1, ce=3.0)]
    assert mean_of(rows) == {"loss": 1.0, "ce": 2.0, "share_ce": 0.5, "grad_norm": 2.0, "skipped": 1}
    assert mean_of([row(1, 1)]) == {"skipped": 1}


def test_faults_have_their_step_and_tiles():
    rows = [row(), row(1, 1, ce=NAN), row(2, 2, ce=NAN), row()]
    found = faults_of(rows, 20, lambda step: [f"tile_of_{step}"])
    assert found == [
        {"step": 18, "terms": ["ce"], "tiles": ["tile_of_18"]},
        {"step": 19, "terms": ["ce"], "tiles": ["tile_of_19"]},
    ]


class Lines:
    def __init__(self):
        self.rows = []

    def write(self, network, step, values):
        self.rows.append(json.loads(json.dumps(values, allow_nan=False)))

    def scalars(self, step, values):
        assert all(isinstance(value, int | float) for value in values.values())

    def text(self, step):
        return str(step)

    def tick(self, step):
        pass


def test_too_many_bad_steps_in_a_row_are_an_error_after_the_log_has_them():
    lines = Lines()
    log = TrainingLog(
        "student", lines, lines, lines, lambda step: 0.1 * step, lambda step: ["a", "b"], 3, lambda: "SAVED"
    )
    for step in (1, 2, 3):
        log.add(step, row(step - 1, step - 1, hfd=NAN if step > 1 else 0.0))
    log.write(3)
    assert lines.rows[0]["skipped"] == 2 and lines.rows[0]["learning_rate"] == 0, "one update so far"
    log.add(4, row(3, 3, hfd=INF))
    with pytest.raises(DivergedError, match="student: 3 steps in a row .* step 4: hfd not finite; tiles a, b. SAVED"):
        log.write(4)
    assert lines.rows[1]["faults"] == [{"step": 4, "terms": ["hfd"], "tiles": ["a", "b"]}]
