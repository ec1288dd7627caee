"""Balanced samples of a box head (Libra R-CNN, arXiv:1904.02701, section 3.1).

Of positives, each object gets the same share.  Of negatives, each range of IoUs with the objects
gets the same share, so that hard ones are not drowned by the many that overlap nothing.

Each candidate gets two random numbers.  By the first, a group (an object, or a range of IoUs) keeps
as many candidates as its share; by the second, a kind keeps as many of these as it needs, and fills
up with others.
"""

from typing import Any

import jax
import jax.numpy as jnp

from detlab.assign import sampling
from detlab.ops import ranks

Array = Any


def sample(
    rng: Array, status, matched, max_iou, num: int, positive_fraction: float, num_bins: int = 3
) -> sampling.Sampled:
    """A balanced draw of at most `num` candidates of one image, without replacement.

    The quotas of positives and negatives are those of `sampling.sample`.  A kind that has no more
    than its quota is drawn whole.  Else

    - each object that has positives gets round(quota / number of such objects) + 1 of them;
    - the IoUs from 0 to the largest one of all candidates are divided into `num_bins` equal bins,
      and each gets floor(quota / num_bins) negatives;

    fewer where there are fewer.  If that is too many, a uniform draw of them is kept; if too few, a
    uniform draw of the others of this kind is added.  As in the reference, the largest IoU counts
    the positives: the objects themselves have 1, and the bins above `positive_iou` stay empty.

    Args:
      rng: key of this image.
      status: [N] int: 1 positive, 0 negative, -1 never drawn.
      matched: [N] int32 object of each positive.
      max_iou: [N] float32 largest IoU with an object.
      num, positive_fraction: static, see `sampling.sample`.
      num_bins: static.
    Returns:
      Sampled with K = min(num, N).
    Raises:
      ValueError: `num_bins` is below 1, or as in `sampling.sample`.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, not {num_bins}")
    positive, negative = status == 1, status == 0
    edges = jnp.max(jnp.where(positive | negative, max_iou, 0.0), initial=0.0) * (
        jnp.arange(1, num_bins + 1) / num_bins
    )
    bins = (max_iou[:, None] >= edges).sum(-1)  # `num_bins` where it is the largest
    # Groups of positives and of negatives do not meet.
    group = jnp.where(positive, matched, -1 - bins)
    first, second = (jax.random.uniform(key, status.shape) for key in jax.random.split(rng))
    rank = ranks.in_groups(jnp.where(positive | negative, group, -2 - num_bins), first)

    most = int(num * positive_fraction)
    objects = jnp.maximum((positive & (rank == 0)).sum(), 1)
    of_object = jnp.round(most / objects) + 1
    of_bin = (num - jnp.minimum(positive.sum(), most)) // num_bins
    share = jnp.where(positive, of_object, jnp.where(bins < num_bins, of_bin, 0))
    return sampling.highest((rank < share) + second, status, num, positive_fraction)
