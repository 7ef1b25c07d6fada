"""The evaluation steps: pure functions of (variables, batch)."""

import jax
import jax.numpy as jnp

from hfd_jax.core.collectives import gathered, global_sum
from hfd_jax.core.labels import IGNORE_LABEL
from hfd_jax.data.inputs import InputSpec, network_input
from hfd_jax.evaluation.metrics import confusion_matrix
from hfd_jax.models.base import SegmentationNetwork


def eval_step(model: SegmentationNetwork, inputs: InputSpec, sensor: str):
    """Returns (variables, batch) -> {"confusion": [K, K] int32, "ignored": int32}, summed over the whole batch."""

    def step(variables, batch):
        batch = network_input(batch, inputs)
        logits, _ = model.apply(variables, batch[sensor], train=False)
        label = common_label(batch)
        counts = {
            "confusion": confusion_matrix(jnp.argmax(logits, -1), label, model.classes),
            # Padding (index -1) does not belong to the data set and is not counted as ignored.
            "ignored": jnp.sum((label == IGNORE_LABEL) & (batch["index"] >= 0)[:, None, None]),
        }
        return global_sum(counts)

    return step


def common_label(batch: dict):
    """label [B, H, W] where both sensors have data, so that all networks are scored on the same pixels."""
    return jnp.where(batch["sar_valid"] & batch["eo_valid"], batch["label"], IGNORE_LABEL)


def predict_step(model: SegmentationNetwork, inputs: InputSpec, sensor: str):
    """Returns (variables, batch) -> class index [B, H, W] uint8."""

    def step(variables, batch):
        logits, _ = model.apply(variables, network_input(batch, inputs)[sensor], train=False)
        return jnp.argmax(logits, -1).astype(jnp.uint8)

    return step


def class_map_step(model: SegmentationNetwork, inputs: InputSpec, sensor: str, of_class: int):
    """Returns (variables, batch) -> maps to score one class, gathered on every device for the whole batch.

    "prediction" [B, H, W] uint8 class index, "probability" [B, H, W] float32 of class `of_class` (softmax), "label"
    [B, H, W] uint8 as `eval_step` counts it.
    """

    def step(variables, batch):
        batch = network_input(batch, inputs)
        logits, _ = model.apply(variables, batch[sensor], train=False)
        maps = {
            "prediction": jnp.argmax(logits, -1).astype(jnp.uint8),
            "probability": jax.nn.softmax(logits)[..., of_class],
            "label": jnp.where(batch["sar_valid"] & batch["eo_valid"], batch["label"], IGNORE_LABEL),
        }
        return gathered(maps)

    return step
