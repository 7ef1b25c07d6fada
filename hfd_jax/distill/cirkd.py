"""Cross-image relational distillation (CIRKD; Yang et al. 2022, CVPR, arXiv 2204.06986): relations beyond one image.

Three parts, each a mean over the valid nodes (means over cells of the feature's grid, of length 1) of divergences
between the teacher's and the student's distribution of similarities / temperature:

    batch    of a node with all nodes of an image, over all pairs of images in the batch
    pixels   of a node with embeddings of single positions of this and earlier batches, from a queue per class
    regions  of a node with class means of this and earlier batches' images, from a queue per class

    loss = batch + pixel_weight * pixels + region_weight * regions

The queues hold embeddings of the teacher, of length 1: of every labelled image and class the mean and up to 16 random
positions. In the last two parts the student's feature goes through a projection head. Weights 1, 0.1, 0.1 and
temperature 0.1 are the paper's, whose means are ours; its pixel-wise part, of weight 1, is `kd`.

Ours: nodes are the pooling that the authors' code has as an option; all their relations are compared, since the formula
needs no label of theirs, and pairs without labels teach so too (they enter no queue); queues are a tenth as long,
because they are part of every checkpoint; what is not filled yet takes no part, where the authors fill with random
numbers.
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

POSITIONS = 16  # of an image and class that enter the queue in one step


def batch_divergence(mine, theirs, seen, temperature: float):
    """The part "batch": nodes [B, n, C] and [B, n, C'] of length 1, seen [B, n] bool."""
    (batch, count), everywhere = seen.shape, gathered(seen)

    def scores(x):
        others = gathered(x).reshape(-1, x.shape[-1])
        return similarities(x, others).reshape(batch, count, -1, count) / temperature

    per_image = divergence(scores(theirs), scores(mine), everywhere)
    return masked_mean(per_image, seen[:, :, None] & jnp.any(everywhere, -1))


def queue_divergence(mine, theirs, seen, queue, filled, temperature: float):
    """The other parts: nodes [B, n, C] of length 1, queue [M, C], filled [M] bool."""
    per_node = divergence(*(similarities(x, queue) / temperature for x in (theirs, mine)), filled)
    return masked_mean(per_node, seen)


def push(queue, count, entries, flags):
    """Puts the flagged entries into a ring; where they are more than its size, the last of them.

    Args:
      queue: [size, C].
      count: int32, entries so far; beyond 2 * size it is kept between size and 2 * size, with the same remainder.
      entries, flags: [M, C] and [M] bool.

    Returns:
      (queue, count).
    """
    size, rank, total = len(queue), jnp.cumsum(flags) - 1, jnp.sum(flags)
    slots = jnp.where(flags & (rank >= total - size), (count + rank) % size, size)
    queue, count = queue.at[slots].set(entries, mode="drop"), count + total
    return queue, jnp.where(count >= size, size + count % size, count).astype(jnp.int32)


def samples_of_classes(x, label, classes: int, keys):
    """Up to POSITIONS random positions of each class: x [B, N, C] -> ([B, K, P, C], [B, K, P] bool)."""
    draws = jax.vmap(lambda key: jax.random.uniform(key, label.shape[1:]))(keys)
    belongs = label[:, None] == jnp.arange(classes)[:, None]
    values, places = jax.lax.top_k(jnp.where(belongs, draws[:, None], -1.0), min(POSITIONS, label.shape[1]))
    return jax.vmap(lambda sample, place: sample[place])(x, places), values >= 0


class CIRKD(Distiller):
    """Its queues are the collection "memory" of its variables.

    Attributes:
      tap: the feature that is compared.
      nodes: at most so many along either axis.
      temperature: of similarities.
      pixel_weight, region_weight: of the parts within the loss.
      pixels, regions: length of a class's queues.
      contrasted_pixels, contrasted_regions: so many entries of all queues together are compared with, drawn every step.
    """

    method: ClassVar[str] = "cirkd"
    title: ClassVar[str] = "CIRKD"

    weight: float = option(1.0, "weight of the loss and of its part within the batch; as published", above=0)
    pixel_weight: float = option(0.1, "as published, of the part of single positions in the queue", at_least=0)
    region_weight: float = option(0.1, "as published, of the part of class means in the queue", at_least=0)
    temperature: float = option(0.1, "of similarities; as published", above=0)
    tap: str = option("A", "feature compared")
    nodes: int = option(8, "along either axis, at most; a node is the mean of a cell of positions", above=0)
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
        mine, headed, theirs = (unit(nodes(x, maps.mask, self.nodes)[0]) for x in (maps.student, head, maps.target))
        seen = nodes(maps.target, maps.mask, self.nodes)[1]
        key = self.make_rng("noise")
        rings = self._memory(maps, key, train)
        terms = {"batch": batch_divergence(mine, theirs, seen, self.temperature)}
        for name, most in (("pixels", self.contrasted_pixels), ("regions", self.contrasted_regions)):
            queue, filled = self._drawn(*rings[name], most, key)
            terms[name] = queue_divergence(headed, theirs, seen, queue, filled, self.temperature)
        loss = terms["batch"] + self.pixel_weight * terms["pixels"] + self.region_weight * terms["regions"]
        return {"cirkd": loss, **{f"cirkd_{name}": value for name, value in terms.items()}}

    def _memory(self, maps: Maps, key, train: bool):
        """name -> (queues [K, size, C], entries so far [K]), with what this batch adds."""
        classes, channels = maps.classes, maps.target.shape[-1]
        batch, label = len(maps.label), maps.label.reshape(len(maps.label), -1)
        x = unit(maps.target.reshape(batch, -1, channels))
        means, occur = class_means(x, label, classes)
        keys = sample_keys(key, batch)
        news = {
            "pixels": samples_of_classes(x, label, classes, keys),
            "regions": (unit(means)[:, :, None], occur[:, :, None]),
        }
        rings = {}
        for name, size in (("pixels", self.pixels), ("regions", self.regions)):
            queue = self.variable("memory", name, jnp.zeros, (classes, size, channels))
            count = self.variable("memory", f"{name}_count", jnp.zeros, (classes,), jnp.int32)
            rings[name] = queue.value, count.value
            if train and not self.is_initializing():
                # [B, K, P, ...] of all devices -> [K, B * P, ...]: every device fills the same queues.
                entries, flags = (jnp.moveaxis(gathered(new), 0, 1) for new in news[name])
                rings[name] = jax.vmap(push)(
                    *rings[name], entries.reshape(classes, -1, channels), flags.reshape(classes, -1)
                )
                queue.value, count.value = rings[name]
        return rings

    def _drawn(self, queue, count, most: int, key):
        """The same random slots of every class, about `most` in all: ([M, C], [M] bool, whether they are filled)."""
        classes, size, channels = queue.shape
        slots = jax.random.permutation(key, size)[: max(1, most // classes)]
        return queue[:, slots].reshape(-1, channels), (slots < count[:, None]).reshape(-1)
