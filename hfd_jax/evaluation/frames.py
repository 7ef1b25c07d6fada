"""The numbers that a run has logged and its scores, as pandas frames."""

import pandas as pd

from hfd_jax.core.errors import WorkdirError
from hfd_jax.core.logs import read_log
from hfd_jax.core.workdir import Workdir, read_json
from hfd_jax.evaluation.metrics import SUMMARY


def read_metrics(workdir: str) -> pd.DataFrame:
    """Reads the metrics that a run logged while it trained.

    Args:
      workdir: workdir of the run.

    Returns:
      One row per line of metrics.jsonl: network, step, and the logged numbers (NaN where a line lacks one).

    Raises:
      WorkdirError: the folder holds no metrics.jsonl.
    """
    path = Workdir(str(workdir)).metrics
    entries, _ = read_log(path)
    if not entries:
        raise WorkdirError(f"{path}: missing or empty; is {workdir} the workdir of a run?")
    return pd.DataFrame(entries)


def read_evaluation(workdir: str) -> pd.DataFrame:
    """Reads the scores of a run's networks.

    Args:
      workdir: workdir of the run.

    Returns:
      One row per split and network of evaluation.json: title, step, mean_iou, macro_f1, accuracy, kappa, pixels,
      ignored, and the IoU of every class as "iou CLASS".

    Raises:
      WorkdirError: the folder holds no evaluation.json.
    """
    rows = []
    for split, networks in read_json(Workdir(str(workdir)).evaluation).items():
        for network, row in networks.items():
            numbers = {key: row[key] for key in ("title", "step", *SUMMARY, "pixels", "ignored")}
            ious = {f"iou {name}": scores["iou"] for name, scores in row["per_class"].items()}
            rows.append({"split": split, "network": network, **numbers, **ious})
    return pd.DataFrame(rows)
