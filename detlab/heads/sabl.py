"""What the heads of SABL predict for the four sides of a box (arXiv:1912.04260, section 3).

Letters: S buckets of a side.
"""

from collections.abc import Callable

from flax import linen as nn


def buckets_per_side(num_buckets: int) -> int:
    """S, when `num_buckets` divide the width and the height; two sides share one in the middle."""
    return -(-num_buckets // 2)


def outputs(num_buckets: int) -> dict[str, tuple[int, Callable]]:
    """The outputs of a box branch, name -> (channels, bias initialiser); see `by_side`."""
    channels = 4 * buckets_per_side(num_buckets)
    return {name: (channels, nn.initializers.zeros) for name in ("bucket_logits", "bucket_offsets")}


def by_side(values):
    """Splits values [..., 4 * S] into those of the four sides, [..., 4, S].

    The sides are left, right, top, bottom, and their buckets run from outside inwards.
    """
    return values.reshape(*values.shape[:-1], 4, -1)
