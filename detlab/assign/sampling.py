"""Random samples of fixed size from assigned candidates (Faster R-CNN, arXiv:1506.01497, 3.1.3).

Each candidate gets a random number, and those with the largest numbers are drawn.  A `top_k` does
this without replacement, and no array is sorted.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = Any


class Sampled(NamedTuple):
    """The candidates an image learns from: positives first, then negatives, then empty slots."""

    index: Array  # [K] int32 candidate, 0 in empty slots
    valid: Array  # [K] bool, the filled slots
    positive: Array  # [K] bool


def sample(
    rng: Array,
    status,
    num: int,
    positive_fraction: float,
    negatives_per_positive: float | None = None,
) -> Sampled:
    """A uniform draw of candidates of one image, without replacement.

    Args:
      rng: key of this image, such as `fold_in(key, index of the image in the global batch)`, which
        makes the draw independent of how the images are split across devices.
      status: [N] int: 1 positive, 0 negative, -1 never drawn.
      num, positive_fraction, negatives_per_positive: static, see `highest`.
    Returns:
      Sampled with K = min(num, N).
    Raises:
      ValueError: as in `highest`.
    """
    # float32, because XLA's top_k of integers is 100 times slower on a CPU.  There are 2^23
    # different numbers; of two equal ones the first is drawn, which is too rare to matter.
    numbers = jax.random.uniform(rng, status.shape)
    return highest(numbers, status, num, positive_fraction, negatives_per_positive)


def highest(
    numbers,
    status,
    num: int,
    positive_fraction: float,
    negatives_per_positive: float | None = None,
) -> Sampled:
    """At most `num` candidates of one image: those of each kind with the largest numbers.

    At most `num * positive_fraction` (rounded down) positives are drawn.  Negatives fill the rest,
    including the unused share of the positives; positives never replace missing negatives.

    Args:
      numbers: [N] float32, at least 0.
      status: [N] int: 1 positive, 0 negative, -1 never drawn.
      num: static; 256 for an RPN, 512 for its box head.
      positive_fraction: static; 0.5 for an RPN, 0.25 for its box head.
      negatives_per_positive: static; if given, the most negatives per drawn positive; no drawn
        positives count as one.  The reference's `neg_pos_ub`.
    Returns:
      Sampled with K = min(num, N).
    Raises:
      ValueError: `status` is not [N], `num` is below 1, or `positive_fraction` is not in 0..1.
    """
    if status.ndim != 1:
        raise ValueError(f"status must be [N], not {status.shape}")
    if num < 1:
        raise ValueError(f"num must be at least 1, not {num}")
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction must be in 0..1, not {positive_fraction}")
    count = len(status)
    slots, quota = min(num, count), most_positives(num, positive_fraction, count)

    def draw(kind, at_most):
        """Candidates of `kind` in random order [at_most], and how many of them are real."""
        found = status == kind
        _, drawn = lax.top_k(jnp.where(found, numbers, -1.0), at_most)
        return drawn, jnp.minimum(jnp.sum(found), at_most)

    positives, num_positives = draw(1, quota)
    negatives, num_negatives = draw(0, slots)
    num_negatives = jnp.minimum(num_negatives, num - num_positives)
    if negatives_per_positive is not None:
        limit = jnp.floor(negatives_per_positive * jnp.maximum(num_positives, 1))
        num_negatives = jnp.minimum(num_negatives, limit.astype(num_negatives.dtype))

    slot = jnp.arange(slots)
    positive = slot < num_positives
    valid = slot < num_positives + num_negatives
    # The first slots take the positives, the next ones the negatives.
    source = jnp.where(positive, slot, quota + slot - num_positives)
    index = jnp.concatenate([positives, negatives])[source]
    return Sampled(jnp.where(valid, index, 0).astype(jnp.int32), valid, positive)


def most_positives(num: int, positive_fraction: float, slots: int) -> int:
    """How many of the first slots of a sample can be positives.

    Args:
      num, positive_fraction: see `highest`.
      slots: the candidates, or those that were drawn.
    """
    return min(int(num * positive_fraction), slots)
