"""VGG16 for SSD: published size, paths, and maps whose sizes are rounded up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from detlab.backbones import vgg

TINY = dict(convs=(1, 1, 1, 1, 1), width=2, fc_width=6)


def shapes_of(module, size=(64, 64)):
    """(paths and shapes of the leaves, the maps)."""
    images = jnp.zeros((2, *size, 3), module.dtype)
    init = functools.partial(module.init_with_output, train=False)
    maps, tree = jax.eval_shape(init, jax.random.key(0), images)
    flat = traverse_util.flatten_dict(tree["params"], sep="/")
    return {path: x.shape for path, x in flat.items()}, maps


def test_size_is_that_of_the_published_network_with_two_smaller_linear_layers():
    shapes, _ = shapes_of(vgg.VGG())
    assert sum(path.endswith("kernel") for path in shapes) == 13 + 2
    convolutions = [s for path, s in shapes.items() if path.startswith("stage")]
    assert sum(map(np.prod, convolutions)) == 14_714_688  # of torchvision's vgg16().features
    assert shapes["stage1/conv2/conv/kernel"] == (3, 3, 64, 64)
    assert shapes["stage5/conv3/conv/kernel"] == (3, 3, 512, 512)
    assert shapes["fc6/conv/kernel"] == (3, 3, 512, 1024)
    assert shapes["fc7/conv/kernel"] == (1, 1, 1024, 1024)


@pytest.mark.parametrize("size", [(300, 300), (64, 96), (65, 99)])
def test_maps_have_strides_8_and_16_rounded_up(size):
    _, maps = shapes_of(vgg.VGG(**TINY), size)
    cells = [tuple(-(-side // stride) for side in size) for stride in (8, 16)]
    assert [x.shape for x in maps] == [(2, *cells[0], 16), (2, *cells[1], 6)]


def test_outputs_have_the_computation_dtype():
    _, maps = shapes_of(vgg.VGG(**TINY, dtype=jnp.bfloat16))
    assert {x.dtype for x in maps} == {jnp.dtype("bfloat16")}


def test_norms_take_the_place_of_biases():
    shapes, _ = shapes_of(vgg.VGG(**TINY, norm="batch"))
    assert shapes["stage2/conv1/norm/scale"] == (4,) and shapes["fc6/norm/bias"] == (6,)
    assert not any(path.endswith("conv/bias") for path in shapes)
