"""The model card beside a model file: Markdown with YAML front matter in the form that Hugging Face reads."""

from collections.abc import Mapping
from typing import Any

import yaml

from hfd_jax.data.facts import SPLITS
from hfd_jax.inference.restore import model_config
from hfd_jax.models.registry import ARCHITECTURES

UNKNOWN = "unknown"
_UNITS = {"db": "dB (10 log10 of linear power)", "raw": "the data set's own scale"}
_METRICS = {"mean_iou": "mIoU", "macro_f1": "macro F1", "accuracy": "overall accuracy", "kappa": "Cohen's kappa"}

_CARD = """---
{front}---

# {title}

## Model description

{title} assigns one of {count} classes to every pixel of a radar image: {classes}. Its architecture is {architecture}
({parameters} parameters). It was trained with hfd_jax; {teaching}.

- Input: SAR, bands {bands} in this order, unit {unit}, pixel size {pixel_size}.
- Output: a class index and {count} probabilities per pixel. Pixels without data get class 255 and probability 0.
- Computation: {dtype}; parameters are float32. Filter ({filter}) and standardisation are part of the model.

## Intended use

Mapping the classes above in SAR images from the sensor, with the bands, calibration, pixel size and imaging geometry
({look_axis}) of the training data.

## Limits

- Trained on one data set, `{data}`. Accuracy on other sensors, regions, seasons or resolutions: {unknown}.
- The values must be in the stated unit; linear power, for example, has to be converted first.
- Layover, shadow and speckle limit what a radar image shows; the probabilities have not been calibrated.
- Bias and safety for a particular application: {unknown}.

## Training data

`{data}` (in the config: `{configured}`), tiles per split: {tiles}. Band statistics of the training pixels:

| band | mean | std |
|---|---|---|
{statistics}

Licence and origin of the data: {unknown} to this card; see the data set.

## Metrics

{metrics}

## How to use

```python
import numpy as np
import hfd_jax
student = hfd_jax.load("{file}")
image = np.load("image.npy")  # [H, W, {band_count}] float, {bands} in {unit}
classes, probabilities = student.predict(image)
```

Georeferenced scenes: `python -m tools.predict --model={file} --input=scene.tif --output=maps`.

## Licence

Of these weights: {licence}. The terms of the training data may apply.

## Provenance

- Network `{network}`, step {step}, validation mIoU during training: {score}.
- Checkpoint digest (blake2b): {digest}.
- Teacher: {teacher}.
- Pretrained encoder: {pretrained}.
- Versions: {versions}.
- The complete config and a digest of every array are in the metadata of `{file}`.
"""


def model_card(
    record: Mapping[str, Any], parameters: int, file: str, evaluation: Mapping[str, Any], licence: str = ""
) -> str:
    """Fills the card from what a run recorded; what is not known is stated to be unknown.

    Args:
      record: of the network's checkpoint.
      parameters: number of parameters.
      file: name of the model file.
      evaluation: split -> the network's row of evaluation.json, of this very checkpoint.
      licence: SPDX identifier of the weights' licence; "" if it is not stated.
    """
    facts, normalisation = record["facts"], record["inputs"]["normalisation"]
    bands, statistics = record["bands"]["sar"], record["inputs"]["sar"]
    rows = zip(bands, statistics["mean"], statistics["std"], strict=True)
    pretrained = record.get("pretrained")
    return _CARD.format(
        front=yaml.safe_dump(_front_matter(record, evaluation, licence), sort_keys=False, allow_unicode=True),
        title=record["title"],
        count=len(facts["class_names"]),
        classes=", ".join(facts["class_names"]),
        architecture=ARCHITECTURES[model_config(record)["architecture"]].title,
        parameters=parameters,
        teaching=_teaching(record),
        bands=", ".join(bands),
        band_count=len(bands),
        unit=_UNITS[facts["sar_unit"]],
        pixel_size=f"{facts['pixel_size']:g} m" if facts["pixel_size"] else UNKNOWN,
        dtype=record["dtype"],
        filter=normalisation["sar_filter"],
        look_axis=_look(facts["look_axis"]),
        data=facts["name"],
        configured=record["config"]["data"]["name"],
        tiles=", ".join(f"{count} {split}" for split, count in record["tiles"].items()) or UNKNOWN,
        statistics="\n".join(f"| {band} | {mean:.4g} | {std:.4g} |" for band, mean, std in rows),
        metrics=_metrics(evaluation, facts["class_names"]),
        licence=licence or "not stated (`tools.export --license=SPDX` states it)",
        file=file,
        network=record["network"],
        step=record["step"],
        score=_number(record.get("score")),
        digest=record.get("blake2b", UNKNOWN),
        teacher=_teacher(record.get("teacher")),
        pretrained=f"{pretrained['source']} (SHA-256 {pretrained['source_sha256']})" if pretrained else "none recorded",
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()) or UNKNOWN,
        unknown=UNKNOWN,
    )


def _front_matter(record: Mapping[str, Any], evaluation: Mapping[str, Any], licence: str) -> dict[str, Any]:
    front = {
        "license": licence.lower() or UNKNOWN,  # Hugging Face spells the identifiers in lower case
        "library_name": "hfd_jax",
        "pipeline_tag": "image-segmentation",
        "tags": ["image-segmentation", "semantic-segmentation", "sar", "remote-sensing", "jax", "flax"],
    }
    results = [_result(record, split, row) for split, row in evaluation.items()]
    if not results:
        return front
    return front | {
        "metrics": [*_METRICS],
        "model-index": [{"name": record["title"], "results": results}],
    }


def _result(record: Mapping[str, Any], split: str, row: Mapping[str, Any]) -> dict[str, Any]:
    known = split in SPLITS  # the label of another data set joins data set and split
    dataset = {"name": record["facts"]["name"], "type": record["facts"]["name"], "split": split}
    return {
        "task": {"type": "image-segmentation"},
        "dataset": dataset if known else {"name": split, "type": split},
        "metrics": [
            {"type": key, "name": name, "value": row[key]} for key, name in _METRICS.items() if row[key] is not None
        ],
    }


def _teaching(record: Mapping[str, Any]) -> str:
    methods = record["config"]["distill"]["method"] if record["network"] == "student" else ()
    if not methods:
        return "it was not distilled from a teacher"
    return f"it was distilled from a teacher that reads optical images ({', '.join(methods)})"


def _teacher(identity: Mapping[str, Any] | None) -> str:
    if not identity:
        return "none recorded"
    return f"step {identity['step']}, {len(identity['arrays'])} arrays, whose digests are in the metadata"


def _look(axis: str) -> str:
    return {"any": "any look direction", "x": "radar looking along image rows", "y": "along image columns"}[axis]


def _metrics(evaluation: Mapping[str, Any], classes: list[str]) -> str:
    if not evaluation:
        return f"{UNKNOWN.capitalize()}: the run holds no evaluation of this checkpoint."
    names = [*_METRICS.values(), *(f"IoU {name}" for name in classes)]
    lines = [["split", *names], ["---"] * (len(names) + 1)]
    for split, row in evaluation.items():
        ious = (row["per_class"][name]["iou"] for name in classes)
        lines.append([split, *map(_number, [*(row[key] for key in _METRICS), *ious])])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\nFrom one confusion matrix over all pixels of the split; means are over classes."


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4f}"
