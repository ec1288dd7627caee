"""What SABL's heads predict for the sides of a box."""

import numpy as np
import pytest

from detlab.heads import sabl


@pytest.mark.parametrize("num_buckets, per_side", [(14, 7), (7, 4), (3, 2)])
def test_channels_are_the_buckets_of_four_sides(num_buckets, per_side):
    assert sabl.buckets_per_side(num_buckets) == per_side
    outputs = sabl.outputs(num_buckets)
    assert {name: channels for name, (channels, _) in outputs.items()} == {
        "bucket_logits": 4 * per_side,
        "bucket_offsets": 4 * per_side,
    }


def test_sides_come_first():
    assert sabl.by_side(np.arange(12).reshape(1, 12)).tolist() == [
        [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    ]
