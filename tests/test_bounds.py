"""Bounds on candidates: what is noted, and when nothing is noted."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from detlab import bounds


class Levels(nn.Module):
    """Notes the candidates of each level, arrays [B, ...] that are True where one passes."""

    most: int = 2

    def candidates(self, *levels):
        bounds.note(self, "most", *levels)
        return len(levels)


def exceeded(*levels):
    levels = [jnp.array(level, bool) for level in levels]
    _, noted = Levels().apply({}, *levels, method="candidates", mutable=[bounds.COLLECTION])
    return np.asarray(noted[bounds.COLLECTION]["most"]).tolist()


def test_a_bound_is_exceeded_by_more_and_not_by_as_many():
    assert exceeded([[1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]) == [False, True, False]


def test_all_axes_of_an_image_count():
    assert exceeded([[[1, 1], [0, 0]], [[1, 0], [1, 1]]]) == [False, True]


def test_each_level_has_the_bound_of_its_own():
    first, second = [[1, 1], [1, 1], [1, 1]], [[1, 1, 0], [1, 1, 1], [0, 0, 0]]
    assert exceeded(first, second) == exceeded(second, first) == [False, True, False]


def test_nothing_is_noted_where_nobody_asks():
    passing = jnp.ones((1, 9), bool)
    assert Levels().apply({}, passing, method="candidates") == 1
    assert Levels().candidates(passing) == 1  # unbound
