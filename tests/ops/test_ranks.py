"""Ranks within groups, against a plain sort of each group."""

import jax
import numpy as np

from detlab.ops import ranks


def test_ranks_are_those_of_a_plain_sort_of_each_group():
    random = np.random.default_rng(0)
    group, first = random.integers(-2, 3, 60), random.integers(0, 3, 60)  # many are equal
    second = random.integers(0, 2, 60).astype(np.float32)
    found = np.asarray(jax.jit(ranks.in_groups)(group, first, second))
    for number in np.unique(group):
        rows = np.flatnonzero(group == number)
        # Python's sort is stable: of equal rows, the first stays first.
        ordered = sorted(rows, key=lambda row: (-first[row], -second[row]))
        np.testing.assert_array_equal(found[ordered], np.arange(len(rows)))


def test_no_rows_have_no_ranks():
    assert ranks.in_groups(np.zeros(0, np.int32), np.zeros(0, np.float32)).shape == (0,)
