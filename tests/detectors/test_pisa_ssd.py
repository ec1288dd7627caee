"""What prime sample attention changes in SSD; tests/detectors/test_contract.py checks the rest."""

import jax
import numpy as np
import pytest
import tiny

from detlab import contract
from detlab.detectors import pisa_ssd, ssd

TINY = tiny.TINY["pisa_ssd"].fields
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def subject(subject_of):
    return subject_of("pisa_ssd")


def test_parameters_are_those_of_ssd(subject):
    plain = contract.from_module(ssd.SSD(**TINY))
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), np.uint8)
    params, state = jax.eval_shape(plain.init, KEY, images)
    assert jax.tree.map(np.shape, subject.variables[0]) == jax.tree.map(np.shape, params)
    assert subject.variables[1] == state


@pytest.mark.slow
def test_isr_moves_loss_among_positives_but_keeps_its_sum(subject):
    """Without powers the weights are 1: the class term is SSD's, and CARL is the box term again."""
    batch = tiny.make_batch()
    plain = contract.from_module(ssd.SSD(**TINY))
    flat = subject.build(isr_k=0.0, carl_k=0.0)

    @tiny.jit
    def all_three(params, state, batch):
        detectors = (plain, flat, subject.detector)
        return [
            jax.value_and_grad(d.loss, has_aux=True)(params, state, batch, KEY) for d in detectors
        ]

    results = all_three(*subject.variables, batch)
    (expected, of_flat, found), grads = (
        [metrics for (_, (metrics, _)), _ in results],
        [gradients["head"]["cls_logits0"]["kernel"] for _, gradients in results],
    )
    for metrics in (of_flat, found):
        assert metrics["loss/cls"] == pytest.approx(float(expected["loss/cls"]), rel=1e-5)
        assert metrics["loss/box"] == pytest.approx(float(expected["loss/box"]), rel=1e-5)
    assert of_flat["loss/carl"] == pytest.approx(float(expected["loss/box"]), rel=1e-5)
    assert abs(found["loss/carl"] - of_flat["loss/carl"]) > 1e-3 * of_flat["loss/carl"]
    np.testing.assert_allclose(grads[1], grads[0], rtol=1e-3, atol=1e-4 * np.abs(grads[0]).max())
    assert np.abs(grads[2] - grads[0]).max() > 0.01 * np.abs(grads[0]).max()


def test_overlaps_are_those_of_the_predicted_boxes():
    """Where the predicted deltas are the targets, they are 1."""
    module, batch = pisa_ssd.PISASSD(**TINY), tiny.make_batch()
    targets = tiny.jit(module.targets)(batch, None)["main"]
    positive = np.asarray(targets.status) == 1
    deltas = np.asarray(targets.values["deltas"])
    moved = deltas + np.float32([1.0, 0, 0, 0])  # a tenth of an anchor to the right
    for given, least, most in ((deltas, 1 - 1e-5, 1 + 1e-5), (moved, 0.3, 0.98)):
        found = ssd.Examples(None, given, None, deltas, None, None, None)
        overlaps = np.asarray(tiny.jit(module.overlaps)(batch, found))[positive]
        assert (overlaps > least).all() and (overlaps < most).all()


@pytest.mark.parametrize("field", ["isr_k", "carl_bias", "negatives_per_positive"])
def test_values_that_cannot_be_are_refused(field):
    pisa_ssd.PISASSD().check()
    with pytest.raises(ValueError, match=f"^{field} is -1.0; it must be"):
        pisa_ssd.PISASSD(**{field: -1.0}).check()
