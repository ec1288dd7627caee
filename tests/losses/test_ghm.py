"""Gradient harmonizing mechanism."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.losses import cross_entropy, ghm

SEED = 0


def classification(logits, targets, valid, counts, momentum):
    norms = ghm.classification_norm(logits, targets)
    weights, counts = ghm.harmonize(norms, valid, counts, momentum)
    return (weights * cross_entropy.sigmoid_cross_entropy(logits, targets)).sum(), counts


def regression(deltas, targets, valid, counts, momentum, mu):
    norms = ghm.regression_norm(deltas, targets, mu)
    weights, counts = ghm.harmonize(norms, valid, counts, momentum)
    return (weights * ghm.authentic_smooth_l1(deltas, targets, mu)).sum(), counts


NAMES = ("ghm_c_30_0.75", "ghm_c_10_0", "ghm_c_12_0.5", "ghm_r_10_0.7", "ghm_r_10_0", "ghm_r_7_0.4")


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_equal_the_reference(unit_cases, name):
    case, arrays = unit_cases("losses")[name]
    args, valid = case["args"], arrays["weight"] > 0
    if name.startswith("ghm_c"):
        labels, num_classes = arrays["target"], arrays["pred_0"].shape[1]
        targets = jax.nn.one_hot(labels, num_classes)  # zeros for the background, C
        loss, valid = functools.partial(classification, momentum=args["momentum"]), valid[:, None]
    else:
        targets = arrays["target"]
        loss = functools.partial(regression, momentum=args["momentum"], mu=args["mu"])

    @tiny.jit
    def step(pred, counts):
        return jax.value_and_grad(loss, has_aux=True)(pred, targets, valid, counts)

    counts = jnp.zeros(args["bins"])
    for i in range(2):
        (value, counts), gradient = step(arrays[f"pred_{i}"], counts)
        np.testing.assert_allclose(value, arrays[f"loss_{i}"], **case["tolerance"])
        gradient = arrays[f"cot_loss_{i}"] * gradient
        np.testing.assert_allclose(gradient, arrays[f"grad_pred_{i}"], **case["tolerance"])
        if args["momentum"]:  # without momentum the reference keeps no state
            np.testing.assert_allclose(counts, arrays[f"acc_sum_{i}"], **case["tolerance"])


def test_weights_by_hand():
    """Five examples, one of them invalid; two of the four bins have examples."""
    norms = np.float32([0.1, 0.2, 0.24, 0.9, 0.6])
    valid = np.array([True, True, True, True, False])
    weights, counts = tiny.jit(ghm.harmonize)(norms, valid, np.float32([0, 0, 0, 5]), 0.8)
    np.testing.assert_allclose(counts, [0.2 * 3, 0, 0, 0.8 * 5 + 0.2], rtol=1e-6)
    first, last = 1 / (2 * 0.6), 1 / (2 * 4.2)
    np.testing.assert_allclose(weights, [first, first, first, last, 0], rtol=1e-6)


def test_without_momentum_every_occupied_bin_has_the_same_influence():
    rng = np.random.default_rng(SEED)
    norms = rng.uniform(0, 1, 1000).astype(np.float32) ** 4
    weights, _ = tiny.jit(ghm.harmonize)(norms, np.ones(1000, bool), np.zeros(8, np.float32), 0.0)
    influence = np.bincount((norms * 8).astype(int), weights=weights, minlength=8)
    np.testing.assert_allclose(influence, 1 / 8, rtol=1e-5)  # float32 sums of up to 1000


def test_the_ends_of_the_range_and_the_edges_of_bins_are_counted_once():
    norms = np.float32([0.0, 0.25, 0.5, 0.75, 1.0])
    _, counts = tiny.jit(ghm.harmonize)(norms, np.ones(5, bool), np.zeros(4, np.float32), 0.0)
    assert counts.tolist() == [1, 1, 1, 2]


def test_without_examples_the_counts_stay_and_the_loss_is_zero():
    counts = np.float32([1, 0, 3, 4])
    value_and_grad = tiny.jit(jax.value_and_grad(regression, has_aux=True))
    (value, after), gradient = value_and_grad(
        np.ones((3, 2), np.float32), np.zeros((3, 2)), np.zeros((3, 1), bool), counts, 0.7, 0.02
    )
    assert value == 0 and not np.any(gradient)
    np.testing.assert_array_equal(after, counts)


def test_examples_that_are_left_out_change_nothing():
    rng = np.random.default_rng(SEED)
    logits = rng.normal(0, 2, (20, 3)).astype(np.float32)
    targets = (rng.uniform(size=(20, 3)) < 0.2).astype(np.float32)
    counts = rng.uniform(0, 9, 10).astype(np.float32)
    value_and_grad = tiny.jit(jax.value_and_grad(classification, has_aux=True))
    valid = np.arange(20)[:, None] < 12
    (value, after), gradient = value_and_grad(logits, targets, valid, counts, 0.75)
    (other, other_after), other_gradient = value_and_grad(
        np.where(valid, logits, 50.0), targets, valid, counts, 0.75
    )
    assert value == other
    np.testing.assert_array_equal(after, other_after)
    np.testing.assert_array_equal(gradient, other_gradient)


def test_the_norms_are_those_of_the_gradients():
    x = np.float32([-3.0, -0.5, 0.0, 0.01, 0.02, 4.0])
    for target in (0.0, 1.0):
        gradient = jax.vmap(jax.grad(cross_entropy.sigmoid_cross_entropy), (0, None))(x, target)
        norms = ghm.classification_norm(x, target)
        np.testing.assert_allclose(norms, abs(gradient), rtol=1e-5, atol=1e-7)  # float32 exp
    gradient = jax.vmap(jax.grad(ghm.authentic_smooth_l1), (0, None, None))(x, 0.5, 0.02)
    norms = ghm.regression_norm(x, 0.5, 0.02)
    np.testing.assert_allclose(norms, abs(gradient), rtol=1e-5, atol=1e-7)


def test_authentic_smooth_l1_is_a_parabola_below_mu_and_a_line_above():
    loss = ghm.authentic_smooth_l1(jnp.array([0.0, 1e-2, 100.0]), 0.0, 1.0)
    np.testing.assert_allclose(loss, [0, 0.5e-4, 99.005], rtol=2e-3, atol=1e-7)  # 1 + 5e-5 - 1
