"""Cross-image relational distillation (CIRKD; Yang et al. 2022, CVPR, arXiv 2204.06986): relations beyond one image.

A node is the mean feature over a cell of the grid, normalised to length 1. The loss has three parts. Each averages,
over the valid nodes, the divergence between the teacher's and the student's distribution of similarities / temperature:

    batch    a node with all nodes of an image, over all pairs of images in the batch
    pixels   a node with embeddings of single positions from this and earlier batches, one queue per class
    regions  a node with class means of images from this and earlier batches, one queue per class

    loss = batch + pixel_weight * pixels + region_weight * regions

The queues hold the teacher's embeddings, normalised to length 1: for each labelled image and class, the mean and up to
16 random positions. In the last two parts the student's feature passes through a projection head. The weights 1, 0.1
and 0.1 and the temperature 0.1 are those of the paper, which averages in the same way. The paper's pixel-wise part, of
weight 1, is `kd`.

This implementation differs from the paper. Its nodes are a pooling that the authors' code offers as an option. It
compares all relations between nodes: the formula does not need labels, so unlabelled pairs contribute too (but enter no
queue). Its queues are a tenth as long, because every checkpoint contains them. It leaves out slots that are not filled
yet, which the authors initialise with random numbers.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from hfd_jax.core.collectives import gathered
from hfd_jax.core.losses import masked_mean
from hfd_jax.core.options import option
from hfd_jax.distill.base import Distiller, Maps, Outputs, Terms, compared
from hfd_jax.distill.hfd import Adapter
from hfd_jax.distill.relations import class_means, divergence, nodes, sample_keys, similarities, unit

POSITIONS = 16  # positions per image and class that enter the queue in one step


def batch_divergence(student, teacher, seen, temperature: float):
    """The part "batch", for nodes [B, n, C] and [B, n, C'] of length 1; `seen` [B, n] bool marks the valid ones."""
    (batch, count), everywhere = seen.shape, gathered(seen)

    def scores(x):
        others = gathered(x).reshape(-1, x.shape[-1])
        return similarities(x, others).reshape(batch, count, -1, count) / temperature

    per_image = divergence(scores(teacher), scores(student), everywhere)
    return masked_mean(per_image, seen[:, :, None] & jnp.any(everywhere, -1))


def queue_divergence(student, teacher, seen, queue, filled, temperature: float):
    """The parts "pixels" and "regions", for nodes [B, n, C] of length 1, a queue [M, C] and `filled` [M] bool."""
    per_node = divergence(*(similarities(x, queue) / temperature for x in (teacher, student)), filled)
    return masked_mean(per_node, seen)


def push(queue, count, entries, flags):
    """Writes the flagged entries into a ring buffer; if there are more than fit, only the last ones.

    Args:
      queue: [size, C].
      count: int32, entries written so far; once it reaches size it is kept in [size, 2 * size) with the same remainder.
      entries: [M, C].
      flags: [M] bool.

    Returns:
      The updated (queue, count).
    """
    size, rank, total = len(queue), jnp.cumsum(flags) - 1, jnp.sum(flags)
    slots = jnp.where(flags & (rank >= total - size), (count + rank) % size, size)
    queue, count = queue.at[slots].set(entries, mode="drop"), count + total
    return queue, jnp.where(count >= size, size + count % size, count).astype(jnp.int32)


def samples_of_classes(x, label, classes: int, keys):
    """Draws up to POSITIONS random positions per class: x [B, N, C] -> (values [B, K, P, C], drawn [B, K, P] bool)."""
    draws = jax.vmap(lambda key: jax.random.uniform(key, label.shape[1:]))(keys)
    belongs = label[:, None] == jnp.arange(classes)[:, None]
    values, places = jax.lax.top_k(jnp.where(belongs, draws[:, None], -1.0), min(POSITIONS, label.shape[1]))
    return jax.vmap(lambda sample, place: sample[place])(x, places), values >= 0


class CIRKD(Distiller):
    """Keeps its queues in the variable collection "memory".

    Attributes:
      tap: the feature to compare.
      nodes: maximum number of nodes along each axis.
      temperature: temperature of the similarities.
      pixel_weight, region_weight: weights of the parts "pixels" and "regions".
      pixels, regions: length of the queues of each class.
      contrasted_pixels, contrasted_regions: number of queue entries of all classes drawn for comparison in each step.
    """

    method: ClassVar[str] = "cirkd"
    title: ClassVar[str] = "CIRKD"

    weight: float = option(1.0, "weight of the loss, and of the part within the batch; as published", above=0)
    pixel_weight: float = option(
        0.1, "weight of the part with single positions from the queue; as published", at_least=0
    )
    region_weight: float = option(0.1, "weight of the part with class means from the queue; as published", at_least=0)
    temperature: float = option(0.1, "temperature of the similarities; as published", above=0)
    tap: str = option("A", "feature to compare", rule="a tap of both networks")
    nodes: int = option(
        8, "maximum number of nodes along each axis; a node is the mean over a cell of positions", above=0
    )
    pixels: int = option(2000, "length of a class's queue of single positions; published: 20000", above=0)
    regions: int = option(200, "length of a class's queue of class means; published: 2000", above=0)
    contrasted_pixels: int = option(4096, "entries of all pixel queues used in a step; as published", above=0)
    contrasted_regions: int = option(1024, "entries of all region queues used in a step; as published", above=0)

    @property
    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    @nn.compact
    def __call__(self, student: Outputs, teacher: Outputs, label, valid, train: bool = True) -> Terms:
        maps = compared(student, teacher, self.tap, label, valid, self.method)
        head = Adapter(maps.target.shape[-1], name="projection")(maps.student, train)
        inputs = (maps.student, head, maps.target)
        of_student, projected, of_teacher = (unit(nodes(x, maps.mask, self.nodes)[0]) for x in inputs)
        seen = nodes(maps.target, maps.mask, self.nodes)[1]
        key = self.make_rng("noise")
        rings = self._memory(maps, key, train)
        terms = {"batch": batch_divergence(of_student, of_teacher, seen, self.temperature)}
        for name, total in (("pixels", self.contrasted_pixels), ("regions", self.contrasted_regions)):
            queue, filled = self._draw(*rings[name], total, key)
            terms[name] = queue_divergence(projected, of_teacher, seen, queue, filled, self.temperature)
        loss = terms["batch"] + self.pixel_weight * terms["pixels"] + self.region_weight * terms["regions"]
        return {"cirkd": loss, **{f"cirkd_{name}": value for name, value in terms.items()}}

    def _memory(self, maps: Maps, key, train: bool):
        """Updates the queues with this batch; returns name -> (queues [K, size, C], entries so far [K])."""
        classes, channels = maps.classes, maps.target.shape[-1]
        batch, label = len(maps.label), maps.label.reshape(len(maps.label), -1)
        x = unit(maps.target.reshape(batch, -1, channels))
        means, occur = class_means(x, label, classes)
        keys = sample_keys(key, batch)
        new = {
            "pixels": samples_of_classes(x, label, classes, keys),
            "regions": (unit(means)[:, :, None], occur[:, :, None]),
        }
        rings = {}
        for name, size in (("pixels", self.pixels), ("regions", self.regions)):
            queue = self.variable("memory", name, jnp.zeros, (classes, size, channels))
            count = self.variable("memory", f"{name}_count", jnp.zeros, (classes,), jnp.int32)
            rings[name] = queue.value, count.value
            if train and not self.is_initializing():
                # [B, K, P, ...] from all devices -> [K, B * P, ...], so that every device fills the same queues.
                entries, flags = (jnp.moveaxis(gathered(x), 0, 1) for x in new[name])
                rings[name] = jax.vmap(push)(
                    *rings[name], entries.reshape(classes, -1, channels), flags.reshape(classes, -1)
                )
                queue.value, count.value = rings[name]
        return rings

    def _draw(self, queue, count, total: int, key):
        """Draws the same random slots for each class, about `total` in all: (entries [M, C], filled [M] bool)."""
        classes, size, channels = queue.shape
        slots = jax.random.permutation(key, size)[: max(1, total // classes)]
        return queue[:, slots].reshape(-1, channels), (slots < count[:, None]).reshape(-1)
