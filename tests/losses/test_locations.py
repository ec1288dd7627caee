"""Loss of guided anchoring's locations."""

import jax
import jax.numpy as jnp
import numpy as np

from detlab.losses import locations


def test_values_by_hand():
    """At logit 0, focal loss is alpha ln 2 / 4; negatives have a tenth of their weight."""
    loss = locations.location_focal(jnp.zeros(3), jnp.array([1, 0, -1]), alpha=0.25, gamma=2.0)
    unit = np.log(2) / 4
    np.testing.assert_allclose(loss, [0.25 * unit, 0.1 * 0.75 * unit, 0.0], rtol=1e-6)


def test_inverted_logits_are_those_of_the_opposite():
    rng = np.random.default_rng(0)
    logits, status = jnp.asarray(rng.normal(size=50)), jnp.asarray(rng.integers(-1, 2, 50))
    # With alpha 1 / 2 focal loss is the same for both classes.
    plain = locations.location_focal(logits, status, alpha=0.5)
    inverted = locations.location_focal(-logits, status, alpha=0.5, inverted=True)
    np.testing.assert_allclose(plain, inverted, rtol=1e-6)
    learned = -jax.grad(lambda x: locations.location_focal(x, status).sum())(logits)
    np.testing.assert_array_equal(np.sign(learned), np.where(status == 0, -1, status == 1))
