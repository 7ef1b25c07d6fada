"""What a run says about whether distillation can pay, and whether it does."""

import pytest

from hfd_jax.evaluation.diagnosis import choice, prospect, verdict


def test_the_prospect_is_the_gap_between_teacher_and_sar_only():
    assert "can gain up to 32.0 points" in prospect(0.95, 0.63, "validation")
    assert "knows hardly more" in prospect(0.635, 0.63, "validation")
    unknown = prospect(0.95, None, "test")
    assert "'sar_only' in config.baselines" in unknown and "config.train.eval_every other than 0" in unknown


@pytest.mark.parametrize(
    ("student", "said"),
    [(0.68, "pays in this run: +5.0"), (0.633, "changes little in this run: +0.3"), (0.60, "does not pay")],
)
def test_the_verdict_compares_the_student_with_sar_only(student, said):
    sentences = verdict({"teacher": 0.95, "sar_only": 0.63, "student": student}, None, 0.5, {})
    assert said in sentences[0] and "single run is a hint" in sentences[-1]


def test_the_verdict_names_a_missing_gap_the_limit_and_taps_that_radar_does_not_show():
    scores = {"teacher": 0.60, "sar_only": 0.63, "student": 0.64}
    text = " ".join(verdict(scores, 0.49, 0.5, {"C3": 0.97, "A": 0.6}))
    assert "there is no gap to close" in text and "limited most of the time" in text
    assert "C3 3 %, A 40 %" in text and "next to nothing of C3;" in text
    assert verdict({"student": 0.6}, 0.2, 0.5, {})[0].startswith("Whether distillation pays is unknown")
    assert verdict({}, None, 0.5, {}) == []


def test_the_validation_split_says_which_student_to_use():
    assert choice(0.5, 0.4).endswith("use the SAR-only one (--network=sar_only)")
    assert choice(0.4, 0.5).endswith("use the distilled one")
    assert choice(None, 0.5) == choice(0.5, None) and "nothing says which" in choice(None, 0.5)
