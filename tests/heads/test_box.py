"""The box head: two hidden layers and two outputs, from features by row, column and channel."""

import jax
import jax.numpy as jnp
import numpy as np

from detlab.heads import box

CLASSES, WIDTH = 3, 5


def test_outputs_are_those_of_the_plain_algorithm():
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(2, 4, 3, 3, 2)))  # two images of four RoIs
    module = box.BoxHead(CLASSES, WIDTH)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), shapes)
    assert set(params) == {"fc0", "fc1", "cls_logits", "box_deltas"}
    cls, deltas = module.apply({"params": params}, x)
    assert cls.shape == (2, 4, CLASSES + 1) and deltas.shape == (2, 4, 4 * CLASSES)
    for image in range(2):
        for roi in range(4):
            h = x[image, roi].astype(np.float64).ravel()
            for name in ("fc0", "fc1"):
                h = np.maximum(h @ params[name]["kernel"] + params[name]["bias"], 0)
            for name, found in (("cls_logits", cls), ("box_deltas", deltas)):
                expected = h @ params[name]["kernel"] + params[name]["bias"]
                np.testing.assert_allclose(found[image, roi], expected, rtol=1e-4, atol=1e-4)


def test_outputs_are_float32_whatever_the_computation_dtype():
    module = box.BoxHead(CLASSES, WIDTH, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((4, 3, 3, 2), jnp.bfloat16)
    outputs, params = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    for leaf in jax.tree.leaves((outputs, params)):
        assert leaf.dtype == jnp.float32


def test_class_agnostic_deltas_are_those_of_every_label():
    module = box.BoxHead(CLASSES, WIDTH, class_agnostic=True)
    x = jax.ShapeDtypeStruct((4, 3, 3, 2), jnp.float32)
    (cls, deltas), _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    assert cls.shape == (4, CLASSES + 1) and deltas.shape == (4, 4)
    deltas = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(box.of_label(deltas, np.array([2, 0])), deltas)


def test_deltas_of_a_label_are_its_own_four():
    deltas = np.arange(2 * 12, dtype=np.float32).reshape(2, 12)
    picked = box.of_label(jnp.array(deltas), jnp.array([2, 0]))
    np.testing.assert_array_equal(picked, [deltas[0, 8:], deltas[1, :4]])


def test_known_products_give_the_same_outputs_and_gradients():
    """Of eight RoIs three are taken: as if only these had been computed."""
    rng = np.random.default_rng(0)
    x, rows = np.float32(rng.normal(size=(8, 3, 3, 2))), np.array([5, 0, 6])
    module = box.BoxHead(CLASSES, WIDTH)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), shapes)

    def plain(params, x):
        cls, deltas = module.apply(params, x[rows])
        return (jnp.sin(cls) + jnp.sin(deltas).sum(-1, keepdims=True)).sum()

    def reused(params, x):
        found = module.apply(jax.lax.stop_gradient(params), x, method="with_products")
        known = [product[rows] for product in found[2]]
        cls, deltas, _ = module.apply(params, x[rows], known, method="with_products")
        return (jnp.sin(cls) + jnp.sin(deltas).sum(-1, keepdims=True)).sum()

    (a, of_a), (b, of_b) = (jax.value_and_grad(f, (0, 1))(params, x) for f in (plain, reused))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(of_a), jax.tree.leaves(of_b), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
