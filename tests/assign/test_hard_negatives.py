"""The hardest negatives of an image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.assign import hard_negatives

hardest = tiny.jit(hard_negatives.hardest)


def slow_hardest(losses, negative, num):
    chosen = np.zeros(len(losses), bool)
    for i in sorted(np.flatnonzero(negative), key=lambda i: (-losses[i], i))[:num]:
        chosen[i] = True
    return chosen


@pytest.mark.parametrize("num", [0, 1, 30, 99, 200])
def test_the_negatives_with_the_largest_losses_are_chosen(num):
    rng = np.random.default_rng(num)
    losses = rng.integers(0, 20, 200).astype(np.float32)  # many are equal
    negative = rng.random(200) < 0.5
    found = np.asarray(hardest(losses, negative, num))
    np.testing.assert_array_equal(found, slow_hardest(losses, negative, num))
    assert found.sum() == min(num, negative.sum())


def test_losses_of_0_can_be_chosen_but_nothing_that_is_no_negative():
    losses = np.float32([0, 5, 0, 7])
    found = hardest(losses, np.array([True, False, True, False]), 3)
    assert found.tolist() == [True, False, True, False]


def test_the_choice_has_no_gradient():
    def loss(losses):
        chosen = hard_negatives.hardest(losses, jnp.ones(4, bool), 2)
        return jnp.where(chosen, losses**2, 0.0).sum()

    gradient = tiny.jit(jax.grad(loss))(jnp.array([1.0, 4.0, 2.0, 3.0]))
    assert gradient.tolist() == [0, 8, 0, 6]
