"""Pull and push of tags: a recorded case, a case by hand, and objects with equal tags."""

import jax
import jax.numpy as jnp
import numpy as np

from detlab.losses import embedding


def test_recorded_values_and_gradients(unit_cases):
    case, arrays = unit_cases("losses")["associative_embedding"]
    match, weight = arrays["match_"], (case["args"]["pull_weight"], case["args"]["push_weight"])

    def both(tl, br):
        pull = push = 0.0
        for image in range(len(tl)):
            rows = match[match[:, 0] == image]
            if not len(rows):
                continue
            first, second = (
                tl[image, 0][rows[:, 1], rows[:, 2]],
                br[image, 0][rows[:, 3], rows[:, 4]],
            )
            n = len(rows)
            pull += embedding.pull(first, second).sum() / n
            push += embedding.push(first, second, case["args"]["margin"]).sum() / max(
                n * (n - 1), 1
            )
        return weight[0] * pull, weight[1] * push

    values, gradient = jax.vjp(both, jnp.array(arrays["tl"]), jnp.array(arrays["br"]))
    np.testing.assert_allclose(values, [arrays["pull"], arrays["push"]], **case["tolerance"])
    grads = gradient((jnp.array(arrays["cot_pull"]), jnp.array(arrays["cot_push"])))
    for grad, name in zip(grads, ("grad_tl", "grad_br")):
        np.testing.assert_allclose(grad, arrays[name], **case["tolerance"])


def test_values_by_hand():
    first, second = jnp.array([1.0, 0.0, 5.0]), jnp.array([3.0, 1.0, 5.0])  # means 2, 0.5, 5
    np.testing.assert_allclose(embedding.pull(first, second), [2.0, 0.5, 0.0])
    push = embedding.push(first, second, margin=2.0)
    np.testing.assert_allclose(push, [[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]])


def test_objects_of_equal_tags_have_a_finite_gradient():
    grad = jax.grad(lambda x: embedding.push(x, x).sum())(jnp.zeros(3))
    assert np.isfinite(grad).all()
