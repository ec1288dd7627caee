"""Zeros for entries that learn no object."""

import numpy as np

from detlab.assign import values


def test_only_positive_entries_keep_their_values():
    status = np.int32([[1, 0, -1], [0, 1, 1]])
    tree = {
        "deltas": np.arange(1, 13, dtype=np.float32).reshape(2, 3, 2),
        "row": np.arange(1, 7, dtype=np.int32).reshape(2, 3),
    }
    tree["deltas"][0, 1:] = np.nan, np.inf  # what has no object need not be finite
    found = values.of_positives(status, tree)
    assert found["deltas"].tolist() == [[[1, 2], [0, 0], [0, 0]], [[0, 0], [9, 10], [11, 12]]]
    assert found["row"].tolist() == [[1, 0, 0], [0, 5, 6]]
    assert found["deltas"].dtype == np.float32 and found["row"].dtype == np.int32


def test_status_of_one_image_alone_will_do():
    found = values.of_positives(np.int32([0, 1]), np.ones((2, 4), np.float32))
    assert found.tolist() == [[0] * 4, [1] * 4]
