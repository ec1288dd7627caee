"""The focal loss of heatmaps: recorded cases, equality with focal loss, and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab.losses import focal, heatmap


@pytest.mark.parametrize(
    "name", ["gaussian_focal_none", "gaussian_focal_mean", "gaussian_focal_avg"]
)
def test_recorded_values_and_gradients(unit_cases, name):
    case, arrays = unit_cases("losses")[name]

    def reduced(scores):
        values = heatmap.gaussian_focal(scores, arrays["target"])
        if name.endswith("none"):
            return values
        if name.endswith("mean"):
            return values.mean()
        return (values * arrays["weight"]).sum() / (case["args"]["avg_factor"] + 1.19e-7)

    value, gradient = jax.vjp(reduced, jnp.array(arrays["pred"]))
    tolerance = case["tolerance"]
    np.testing.assert_allclose(value, arrays["loss"], **tolerance)
    (grad,) = gradient(jnp.array(arrays["cot_loss"]))
    np.testing.assert_allclose(grad, arrays["grad_pred"], **tolerance)


def test_hard_targets_make_it_the_focal_loss_without_its_weights():
    logits = np.random.default_rng(0).normal(0, 2, (40,)).astype(np.float32)
    targets = (np.arange(40) % 3 == 0).astype(np.float32)
    found = heatmap.gaussian_focal(jax.nn.sigmoid(logits), targets)
    expected = 2 * focal.sigmoid_focal(logits, targets, 0.5, 2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_near_misses_are_forgiven_and_certain_scores_stay_finite():
    scores = jnp.full(3, 0.9)
    near, nearer, peak = heatmap.gaussian_focal(scores, jnp.array([0.5, 0.9, 1.0]))
    assert near > nearer and peak == pytest.approx(-np.log(0.9) * 0.01, rel=1e-5)
    for score, target in ((0.0, 1.0), (1.0, 0.0)):
        value, grad = jax.value_and_grad(heatmap.gaussian_focal)(
            jnp.array(score), jnp.array(target)
        )
        assert value == pytest.approx(27.63, rel=1e-3) and np.isfinite(grad)
