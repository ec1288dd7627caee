"""The path aggregation neck."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from detlab.backbones import yolov5
from detlab.necks import pan


@pytest.mark.parametrize("levels", [3, 4])
def test_every_level_keeps_its_width_and_has_its_paths(levels):
    neck = pan.PAN(yolov5.conv_norm, functools.partial(yolov5.Block, depth=1, shortcut=False))
    widths = (16, 32, 48, 64)[:levels]
    features = [jnp.zeros((1, 16 >> i, 24 >> i, width)) for i, width in enumerate(widths)]
    init = jax.eval_shape(lambda x: neck.init_with_output(jax.random.key(0), x, False), features)
    assert [x.shape for x in init[0]] == [x.shape for x in features]
    names = {path[0] for path in traverse_util.flatten_dict(init[1]["params"])}
    down = {"reduce5", "down_block4", "reduce4", "down_block3"}
    up = {"up3", "up_block4", "up4", "up_block5"}
    more = {"reduce6", "down_block5", "up5", "up_block6"}
    assert names == down | up | (more if levels == 4 else set())
    kernels = traverse_util.flatten_dict(init[1]["params"], sep="/")
    # A level is joined with the reduced map of the level above, which has its own width.
    assert kernels["down_block3/conv1/conv/kernel"].shape == (1, 1, 16 + 16, 8)
    assert kernels["up_block4/conv1/conv/kernel"].shape == (1, 1, 16 + 16, 16)
    assert kernels["up3/conv/kernel"].shape == (3, 3, 16, 16)
