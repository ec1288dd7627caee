"""SSD's neck: the learned L2 norm, and the sizes of the extra maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from detlab.necks import ssd

SSD300 = [ssd.Extra(*x) for x in ((512, 3, 2, 1), (256, 3, 2, 1), (256, 3, 1, 0), (256, 3, 1, 0))]
SSD512 = [*SSD300[:2], *SSD300[1:2] * 2, ssd.Extra(256, 4, 1, 1)]


@pytest.mark.parametrize(
    "extras, cells, expected",
    [(SSD300, (38, 19), (38, 19, 10, 5, 3, 1)), (SSD512, (64, 32), (64, 32, 16, 8, 4, 2, 1))],
)
def test_the_maps_are_those_of_the_paper(extras, cells, expected):
    features = [jnp.zeros((1, n, n, d)) for n, d in zip(cells, (512, 1024))]
    init = functools.partial(ssd.SSDNeck(extras).init_with_output, train=False)
    maps, tree = jax.eval_shape(init, jax.random.key(0), features)
    widths = (512, 1024, *(extra.width for extra in extras))
    assert [x.shape for x in maps] == [(1, n, n, d) for n, d in zip(expected, widths)]
    found = cells[1]
    for extra, n in zip(extras, expected[2:]):
        found = extra.cells(found)
        assert found == n
    paths = traverse_util.flatten_dict(tree["params"], sep="/")
    assert paths["l2_norm/scale"].shape == (512,)
    assert paths["extra1/conv1/conv/kernel"].shape == (1, 1, 1024, 256)
    assert paths["extra1/conv2/conv/kernel"].shape == (3, 3, 256, 512)


def norm(x, scale):
    return ssd.L2Norm().apply({"params": {"scale": scale}}, x)


def test_each_cell_has_length_1_before_the_scale():
    rng = np.random.default_rng(0)
    x, scale = rng.normal(size=(1, 2, 3, 4)), rng.uniform(1, 20, 4)
    expected = scale * x / np.sqrt((x**2).sum(-1, keepdims=True))
    np.testing.assert_allclose(norm(jnp.float32(x), jnp.float32(scale)), expected, rtol=1e-5)


def test_a_cell_of_zeros_stays_zero_with_finite_gradients():
    x = jnp.zeros((1, 1, 2, 3)).at[0, 0, 1].set(2.0)
    loss = tiny.jit(jax.value_and_grad(lambda x, s: norm(x, s).sum() ** 2, (0, 1)))
    value, (of_x, of_scale) = loss(x, jnp.full(3, 20.0))
    assert value == pytest.approx((3 * 20 / np.sqrt(3)) ** 2, rel=1e-5)
    assert np.isfinite(of_x).all() and np.isfinite(of_scale).all()
    assert not of_x[0, 0, 0].any()


def test_the_scale_starts_at_20():
    tree = ssd.L2Norm().init(jax.random.key(0), jnp.ones((1, 1, 1, 2)))
    assert tree["params"]["scale"].tolist() == [20.0, 20.0]
