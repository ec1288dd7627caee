"""What PISA changes in RetinaNet; tests/detectors/test_contract.py checks the rest."""

import jax
import numpy as np
import pytest
import tiny

from detlab import contract
from detlab.detectors import pisa_retinanet, retinanet

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def subject(subject_of):
    return subject_of("pisa_retinanet")


@pytest.fixture(scope="module")
def losses(subject):
    """batch -> (terms, their gradients) of PISA and of RetinaNet, on the same random maps."""
    plain = contract.from_module(retinanet.RetinaNet(**subject.entry.fields))
    shapes = jax.eval_shape(subject.maps, *subject.variables, subject.batch.images)
    maps = jax.tree.map(lambda x: jax.random.normal(KEY, x.shape), shapes)

    @tiny.jit
    def both(batch):
        def terms(detector, maps):
            return detector.loss_of_maps(*subject.variables, batch, maps, KEY)[1][0]

        return [
            (terms(detector, maps), jax.jacrev(terms, argnums=1)(detector, maps))
            for detector in (subject.detector, plain)
        ]

    return lambda batch: jax.device_get(both(batch))


def test_ranks_move_the_gradient_between_positives_and_keep_the_loss(losses):
    (terms, gradients), (expected, of_plain) = losses(tiny.make_batch())
    np.testing.assert_allclose(terms["loss/cls"], expected["loss/cls"], rtol=1e-5)
    found, other = (x["loss/cls"].cls_logits[0] for x in (gradients, of_plain))
    assert np.abs(found - other).max() > 0.1 * np.abs(other).max()


def test_carl_sends_the_gradient_of_the_boxes_into_the_scores_of_positives(subject, losses):
    batch = tiny.make_batch()
    (_, gradients), _ = losses(batch)
    targets = jax.device_get(subject.targets(*subject.variables, batch, KEY))["main"]
    scored = np.concatenate(
        [x.reshape(2, -1, tiny.NUM_CLASSES) for x in gradients["loss/carl"].cls_logits], axis=1
    )
    labels = np.take_along_axis(batch.labels, targets.matched, 1)
    own = np.eye(tiny.NUM_CLASSES)[labels] * (targets.status == 1)[..., None]
    assert not scored[own == 0].any() and scored[own == 1].all()
    assert scored.min() < 0 < scored.max()
    assert not any(np.any(x) for x in gradients["loss/box"].cls_logits)


def test_without_positives_the_loss_is_that_of_the_background(losses):
    (terms, gradients), (expected, _) = losses(tiny.make_batch(objects=(0, 0)))
    assert terms["positives"] == terms["loss/box"] == terms["loss/carl"] == 0
    np.testing.assert_allclose(terms["loss/cls"], expected["loss/cls"], rtol=1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(isr_bias=1.5), "isr_bias is 1.5; it must be from 0 to 1"),
        (dict(carl_k=-1.0), "carl_k is -1.0; it must be at least 0"),
        (dict(smooth_l1_beta=0.0), "smooth_l1_beta is 0.0; it must be above 0"),
        (dict(depth=20), "depth is 20; it must be one of 18, 34, 50, 101"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    pisa_retinanet.PISARetinaNet().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        pisa_retinanet.PISARetinaNet(**fields).check()
