"""Losses of SABL's buckets."""

import jax
import jax.numpy as jnp
import numpy as np

from detlab.losses import buckets as losses
from detlab.ops import coders


def test_values_by_hand():
    """One side of three buckets: the first is right, the second close to it, the third far."""
    wanted = coders.Buckets(
        offsets=jnp.array([[0.25, -0.75, -1.75]]),
        offset_weights=jnp.array([[1.0, 1.0, 0.0]]),
        labels=jnp.array([[1.0, 0.0, 0.0]]),
        label_weights=jnp.array([[1.0, 0.0, 1.0]]),
    )
    cls, reg = losses.bucket_losses(jnp.zeros((1, 3)), jnp.zeros((1, 3)), wanted, beta=0.5)
    np.testing.assert_allclose(cls, 2 * np.log(2), rtol=1e-6)  # without the second
    np.testing.assert_allclose(reg, 0.25**2 + (0.75 - 0.25), rtol=1e-6)  # without the third


def test_an_entry_without_an_object_has_no_loss_and_finite_gradients():
    nothing = coders.Buckets(*(jnp.zeros((4, 7)) for _ in coders.Buckets._fields))

    def total(logits, offsets):
        return sum(x.sum() for x in losses.bucket_losses(logits, offsets, nothing, 1 / 9))

    value, grads = jax.value_and_grad(total, (0, 1))(jnp.full((4, 7), 1e3), jnp.full((4, 7), 1e9))
    assert value == 0 and all((g == 0).all() for g in grads)
