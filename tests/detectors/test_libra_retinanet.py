"""What Libra changes in RetinaNet; tests/detectors/test_contract.py checks the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab import contract
from detlab.detectors import libra_retinanet, retinanet

KEY = jax.random.key(0)


@pytest.mark.parametrize("size", [(64, 96), (65, 127)])
def test_maps_are_those_of_retinanet_and_parameters_have_a_balanced_pyramid_more(subject_of, size):
    subject = subject_of("libra_retinanet")
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    plain = contract.from_module(retinanet.RetinaNet(**subject.entry.fields))
    params, state = jax.eval_shape(plain.init, KEY, images)
    own, own_state = jax.tree.map(jnp.shape, subject.variables)
    assert set(own.pop("balance")["refine"]) == {"g", "theta", "phi", "output"}
    assert (own, own_state) == (jax.tree.map(jnp.shape, params), jax.tree.map(jnp.shape, state))
    expected = jax.eval_shape(tiny.maps_of(plain), params, state, images)
    found = jax.eval_shape(tiny.maps_of(subject.detector), *subject.variables, images)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)


def test_the_fields_of_balanced_l1_reach_the_box_term(subject_of):
    subject = subject_of("libra_retinanet")
    shapes = jax.eval_shape(subject.maps, *subject.variables, subject.batch.images)
    maps = jax.tree.map(lambda x: jax.random.normal(KEY, x.shape), shapes)
    forms = (
        dict(balanced_l1_beta=0.11),
        dict(balanced_l1_beta=1.0),
        dict(balanced_l1_beta=1.0, balanced_l1_alpha=0.25, balanced_l1_gamma=0.75),
        dict(balanced_l1_beta=1.0, balanced_l1_alpha=0.25),
    )

    @tiny.jit
    def box_terms(maps):
        detectors = (subject.build(**fields) for fields in forms)
        arguments = (*subject.variables, subject.batch, maps, KEY)
        return [d.loss_of_maps(*arguments)[1][0]["loss/box"] for d in detectors]

    narrow, wide, half, steep = box_terms(maps)
    assert narrow > 1.1 * wide
    np.testing.assert_allclose(half, wide / 2, rtol=1e-5)  # both constants halved
    assert steep > 1.1 * wide  # a smaller alpha raises the gradient of small errors


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(refine_level=5), "refine_level is 5; it must be one of 0, 1, 2, 3, 4"),
        (dict(balanced_l1_alpha=0.0), "balanced_l1_alpha is 0.0; it must be above 0"),
        (dict(balanced_l1_beta=-1.0), "balanced_l1_beta is -1.0; it must be above 0"),
        (dict(depth=20), "depth is 20; it must be one of 18, 34, 50, 101"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    libra_retinanet.LibraRetinaNet().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        libra_retinanet.LibraRetinaNet(**fields).check()
