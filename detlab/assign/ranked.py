"""Ranked samples of a box head's negatives (PISA, arXiv:1904.04821, section 3 and ISR-N of 4.1).

A negative harms the mean AP if its score is high, and most if no other box around it has a higher
one, as suppression drops those that have.  The hierarchical local rank of scores (Score-HLR) says
so: the best of every group of overlapping boxes come first, in the order of their scores, then the
second best, and so on.
"""

from typing import Any

import jax
import jax.numpy as jnp

from detlab.assign import sampling
from detlab.ops import nms as nms_lib
from detlab.ops import ranks

Array = Any


def ranks_of(boxes, scores, counted, iou: float):
    """The hierarchical local rank of each counted row of an image (section 3, Score-HLR).

    The groups are those of greedy suppression: a box belongs to the best box that is kept and that
    it overlaps by at least `iou`.  Classes make no difference, as in the reference.

    Args:
      boxes: [N, 4] xyxy px, as predicted.
      scores: [N] of the best class; of equal scores the first row comes first.
      counted: [N] bool; the others take no part.
      iou: static, above 0.
    Returns:
      [N] int32, from 0; meaningless where not counted.
    Example:
      Two boxes at one place, the better one with 0.9, and one elsewhere.
      >>> boxes = jnp.array([[0.0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 12, 12]])
      >>> ranks_of(boxes, jnp.array([0.8, 0.9, 0.1]), jnp.ones(3, bool), 0.5).tolist()
      [2, 0, 1]
    """
    group = nms_lib.leaders(boxes, scores, counted, iou)
    in_group = ranks.in_groups(jnp.where(counted, group, -1), scores)
    return ranks.in_groups(counted.astype(jnp.int32), -in_group, scores)


def sample(
    rng: Array, status, ranked, rank, num: int, positive_fraction: float
) -> sampling.Sampled:
    """At most `num` candidates of one image: random positives and the negatives of lowest rank.

    The quotas of positives and negatives are those of `sampling.highest`.  Negatives without a rank
    come after all that have one, in random order.

    Args:
      rng: key of this image.
      status: [N] int: 1 positive, 0 negative, -1 never drawn.
      ranked: [N] bool: has a rank; read where negative.
      rank: [N] int32, from 0, see `ranks_of`; read where negative and ranked.
      num, positive_fraction: static, see `sampling.highest`.
    Returns:
      Sampled with K = min(num, N); negatives are in the order of their ranks.
    """
    numbers = jax.random.uniform(rng, status.shape)  # below 1
    of_rank = (1 + len(status) - rank).astype(numbers.dtype)
    numbers = jnp.where((status == 0) & ranked, of_rank, numbers)
    return sampling.highest(numbers, status, num, positive_fraction)
