"""Prime sample attention: the weights of ISR-P, ISR-N and CARL (arXiv:1904.04821).

The samples that decide the mean AP are those that overlap their object most.  ISR-P ranks the
positives by overlap and moves weight of the classification loss to the first (section 4.1); ISR-N
does the same with negatives, which `assign.ranked` ranks by score.  CARL
multiplies the box loss by a factor that grows with the score of the object's class, so that its
gradient raises the scores of well localized samples and lowers the others (section 4.2).

Both work for sigmoid and softmax scores: the caller computes the losses and the scores.  The rows
of an image are anchors or RoIs; ranks, sums and the largest class are over the global batch.
"""

import jax
import jax.numpy as jnp
from jax import lax

from detlab.ops import ranks


def isr_weights(ious, matched, labels, positive, losses, k: float = 2.0, bias: float = 0.0):
    """Factors of the classification losses by rank of the overlap (section 4.1, ISR-P).

    The positives are ranked in two rounds (IoU-HLR, section 3): within each object by overlap, then
    within each class by that rank, and by overlap among those of equal rank.  Of equal overlaps,
    such as 0, the last row is first; their order in the reference is undefined.  With n the number
    of positives of the largest class, rank r of a class has the weight ((1 - bias) (n - r) / n +
    bias)^k.  All are scaled so that the sum of the weighted losses of positives does not change.

    Args:
      ious: [B, P] overlap of the predicted box with its object; read where positive, as the next
        three are.
      matched: [B, P] int slot of the object in its image.
      labels: [B, P] int class of the object.
      positive: [B, P] bool.
      losses: [B, P] >= 0, the classification losses; for sigmoid scores, the sums over the classes.
      k: exponent, >= 0; gamma in the paper.
      bias: least weight before the power, 0..1; beta in the paper.
    Returns:
      [B, P] float32 without gradient; 1 where not positive.
    """
    ious, losses = lax.stop_gradient((ious, losses))
    in_object = jax.vmap(_ranks)(matched, positive, ious)  # slots of two images never meet
    flat = (x.reshape(-1) for x in (labels, positive, -in_object, ious))
    rank = _ranks(*flat).reshape(positive.shape)  # [B, P] within its class
    largest = jnp.where(positive, rank + 1, 1).max().astype(jnp.float32)
    weights = ((1 - bias) * (largest - rank) / largest + bias) ** k
    return jnp.where(positive, _keeping_the_sum(weights, losses, positive), 1.0)


def isr_negative_weights(
    rank, ranked, negative, num_ranked, losses, k: float = 0.5, bias: float = 0.0
):
    """Factors of the classification losses of an image's negatives by rank of score (ISR-N).

    With n the larger of the numbers of negatives and of ranked candidates, rank r has the weight
    ((1 - bias) (n - r) / n + bias)^k; negatives without a rank count like the last one with a rank.
    All are scaled so that the sum of the weighted losses of the image does not change.  The paper
    has no formula for negatives; this is the reference's.

    Args:
      rank: [R] int, from 0, see `assign.ranked.ranks_of`; read where negative and ranked.
      ranked: [R] bool.
      negative: [R] bool, the negatives that the image learns from; those with a rank are the first
        of all that have one.
      num_ranked: [] int, of all candidates of the image.
      losses: [R] >= 0, the classification losses.
      k: exponent, >= 0.
      bias: least weight before the power, 0..1.
    Returns:
      [R] float32 without gradient; 1 where not negative.
    """
    losses, ranked = lax.stop_gradient(losses), ranked & negative
    most = jnp.maximum(jnp.maximum(negative.sum(), num_ranked), 1).astype(jnp.float32)
    last = jnp.maximum(ranked.sum() - 1, 0)
    rank = jnp.where(negative, jnp.where(ranked, rank, last), 0)
    weights = ((1 - bias) * (most - rank) / most + bias) ** k
    return jnp.where(negative, _keeping_the_sum(weights, losses, negative), 1.0)


def carl_weights(scores, positive, k: float = 1.0, bias: float = 0.2):
    """Factors of the box losses by the score of the object's class (section 4.2, CARL).

    Each is ((1 - bias) p + bias)^k, divided by the mean of the positives.  The gradient runs
    through them into the scores.

    Args:
      scores: [B, P] p in 0..1, sigmoid or softmax, of the object's class; read where positive.
      positive: [B, P] bool.
      k: exponent, >= 0.
      bias: least factor before the power and the division, 0..1.
    Returns:
      [B, P] float32; 0 where not positive.
    """
    factors = (1 - bias) * scores.astype(jnp.float32) + bias
    counted = positive & (factors > 0)  # a power below 1 has no finite gradient at 0
    factors = jnp.where(counted, jnp.where(counted, factors, 1.0) ** k, 0.0)
    total = factors.sum()
    return factors * positive.sum() / jnp.where(total > 0, total, 1.0)


def _keeping_the_sum(weights, losses, counted):
    """Weights scaled so that the sum of the counted losses stays."""
    losses = jnp.where(counted, losses, 0.0)
    weighted = jnp.where(counted, weights * losses, 0.0).sum()
    # The counted losses can all be 0 in float32, and there may be none.
    scale = jnp.where(weighted > 0, losses.sum() / jnp.where(weighted > 0, weighted, 1.0), 1.0)
    return scale * weights


def _ranks(groups, valid, *keys):
    """Rank of each row in its group by the largest first key, then the largest second; [P] int32.

    Of rows with equal keys, the last is first.  Groups are >= 0; invalid rows are one more group.
    """
    groups = jnp.where(valid, groups, -1)
    return ranks.in_groups(*(x[::-1] for x in (groups, *keys)))[::-1]
