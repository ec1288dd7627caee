"""The head of guided anchors: shapes of anchors, and features that follow them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from detlab.heads import guided_anchor
from detlab.ops import deform_conv


def test_anchors_have_the_predicted_shape_around_the_centre_of_their_square():
    squares = jnp.array([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0]])
    shapes = jnp.log(jnp.array([[2.0, 0.5], [1.0, 1.0]]))
    found = guided_anchor.guided_anchors(squares, shapes)
    np.testing.assert_allclose(found, [[-4, 2, 12, 6], [8, 0, 16, 8]], rtol=1e-6)
    found = guided_anchor.guided_anchors(squares, 10 * shapes, stds=(0.1, 0.2))
    np.testing.assert_allclose(found[0], [-4, 3, 12, 5], rtol=1e-5)
    huge = guided_anchor.guided_anchors(squares, jnp.full((2, 2), 1e9))
    assert np.isfinite(huge).all()


def adaption(seed=0):
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(1, 5, 6, 8)), rng.normal(size=(1, 2, 3, 8)))
    shapes = (rng.normal(size=(1, 5, 6, 2)), rng.normal(size=(1, 2, 3, 2)))
    features, shapes = jax.tree.map(np.float32, (features, shapes))
    module = guided_anchor.FeatureAdaption(width=4, deform_groups=2)
    tree = jax.eval_shape(module.init, jax.random.key(0), features, shapes)["params"]
    params = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.5, x.shape)), tree)
    return module, params, features, shapes


def test_places_follow_the_shapes_and_values_are_positive():
    module, params, features, shapes = adaption()
    found = module.apply({"params": params}, features, shapes)
    for x, shape, level in zip(features, shapes, found):
        offsets = shape[0] @ params["offsets"]["kernel"][0, 0]  # [H, W, 2 * 9 * 2]
        expected = deform_conv.deform_conv(
            x[0], offsets, params["deform"]["kernel"], deform_groups=2
        )
        np.testing.assert_allclose(level[0], np.maximum(expected, 0), rtol=1e-4, atol=1e-5)
    assert params.keys() == {"offsets", "deform"}
    assert all(part.keys() == {"kernel"} for part in params.values())


def test_shapes_learn_nothing_from_the_features():
    module, params, features, shapes = adaption()

    @tiny.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def gradients(params, features, shapes):
        return sum(x.sum() for x in module.apply({"params": params}, features, shapes))

    of_params, of_features, of_shapes = gradients(params, features, shapes)
    assert not any(map(np.any, of_shapes))
    assert all(map(np.any, (*of_features, *jax.tree.leaves(of_params))))
