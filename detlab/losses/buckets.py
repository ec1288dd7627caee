"""The losses of SABL's buckets (arXiv:1912.04260, sections 3.2 and 3.3)."""

from detlab.losses import cross_entropy, regression
from detlab.ops import coders


def bucket_losses(logits, offsets, wanted: coders.Buckets, beta: float):
    """Cross entropy of the buckets, and smooth L1 of the offsets to the best two.

    Args:
      logits: [..., 4, S] of each side and bucket.
      offsets: [..., 4, S] in bucket sizes.
      wanted: of the same shapes; all zero where a box has no object, so its losses are 0.
      beta: of the smooth L1.
    Returns:
      (classification [...], regression [...]), summed over sides and buckets.
    """
    cls = wanted.label_weights * cross_entropy.sigmoid_cross_entropy(logits, wanted.labels)
    reg = wanted.offset_weights * regression.smooth_l1(offsets, wanted.offsets, beta)
    return cls.sum((-2, -1)), reg.sum((-2, -1))
