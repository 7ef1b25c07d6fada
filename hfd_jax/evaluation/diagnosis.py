"""Says in words whether distillation can pay, and whether it does."""

from collections.abc import Mapping

HARDLY_ANY = 0.01  # mIoU; smaller differences are within the spread between seeds
UNPREDICTABLE = 0.95  # share of a tap's variance that the student does not explain


def prospect(teacher: float, sar_only: float | None, split: str) -> str:
    """Says how much distillation can gain, before stage 2.

    Args:
      teacher: mIoU of the teacher on `split`, from optical images.
      sar_only: mIoU of the SAR-only student on it; None if unknown.
      split: name of the split.
    """
    known = f"the teacher has mIoU {teacher:.4f} on split {split!r}"
    if sar_only is None:
        return (
            f"{known}; a SAR-only student with scores on a validation split ('sar_only' in config.baselines, "
            "config.train.eval_every other than 0) would show how much more that is than radar alone gives"
        )
    gap = teacher - sar_only
    against = f"{known}, the SAR-only student {sar_only:.4f}"
    if gap < HARDLY_ANY:
        return f"{against}: the teacher knows hardly more; any gain would come from the unlabelled pairs alone"
    return f"{against}: distillation can gain up to {100 * gap:.1f} points"


def choice(sar_only: float | None, student: float | None) -> str:
    """Says which student to use, by their mIoU on the validation split (None: unknown).

    Distillation can do harm, for example where the teacher knows little about new places, and the validation split is
    what tells without the test split.
    """
    if sar_only is None or student is None:
        return (
            "without scores on a validation split (config.train.eval_every other than 0) nothing says which student to "
            "use"
        )
    found = f"validation mIoU: {student:.4f} for the distilled student, {sar_only:.4f} for the SAR-only student"
    better = "the distilled one" if student > sar_only else "the SAR-only one (--network=sar_only)"
    return f"{found}: use {better}"


def verdict(
    mean_iou: Mapping[str, float], gradient_share: float | None, limit: float, unexplained: Mapping[str, float]
) -> list[str]:
    """Says what distillation brought in a run, and what its log shows.

    Args:
      mean_iou: "teacher", "sar_only" and "student" -> mIoU on the reported split, as far as known.
      gradient_share: mean share of distillation in the gradient at the end of the training; None if not logged.
      limit: the upper limit of that share, config.distill.max_share.
      unexplained: tap -> share of the teacher's variance that the student does not explain, at the end.
    """
    return [*_outcome(mean_iou), *_share(gradient_share, limit), *_taps(unexplained)]


def _outcome(mean_iou: Mapping[str, float]) -> list[str]:
    teacher, sar_only, student = (mean_iou.get(name) for name in ("teacher", "sar_only", "student"))
    if student is None:
        return []
    if sar_only is None:
        return ["Whether distillation pays is unknown: the run has no SAR-only student (config.baselines)."]
    gain, said = student - sar_only, []
    if teacher is not None and teacher <= sar_only:
        said.append(
            f"The teacher scores {teacher:.4f}, the SAR-only student {sar_only:.4f}: there is no gap to close, and no "
            "share of it is given."
        )
    if gain < -HARDLY_ANY:
        said.append(f"Distillation does not pay in this run: {100 * gain:+.1f} points against the SAR-only student.")
    elif gain < HARDLY_ANY:
        said.append(f"Distillation changes little in this run: {100 * gain:+.1f} points against the SAR-only student.")
    else:
        said.append(f"Distillation pays in this run: {100 * gain:+.1f} points over the SAR-only student.")
    return [*said, "A single run is a hint; tools.compare repeats it over seeds."]


def _share(share: float | None, limit: float) -> list[str]:
    if share is None:
        return []
    at_limit = "; it is limited most of the time" if limit < 1 and share > 0.95 * limit else ""
    return [
        f"At the end of the training, distillation makes up {100 * share:.0f} % of the gradient with respect to the "
        f"compared features (limit: {100 * limit:.0f} %{at_limit})."
    ]


def _taps(unexplained: Mapping[str, float]) -> list[str]:
    if not unexplained:
        return []
    shares = ", ".join(f"{tap} {100 * (1 - share):.0f} %" for tap, share in unexplained.items())
    hopeless = [tap for tap, share in unexplained.items() if share > UNPREDICTABLE]
    advice = (
        f" Radar predicts next to nothing of {', '.join(hopeless)}; other config.distill.hfd.taps may serve better."
        if hopeless
        else ""
    )
    return [f"Share of the teacher's features that the student predicts from radar: {shares}.{advice}"]
