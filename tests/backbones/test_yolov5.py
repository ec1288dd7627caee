"""The parts of YOLOv5's backbone that no recorded case tests separately."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from detlab.backbones import yolov5

KEY = jax.random.key(0)


def test_published_sizes_have_the_published_widths_and_depths():
    widths = {m: yolov5.widths_of(3, m) for m in (0.25, 0.5, 0.75, 1.0, 1.25)}
    assert widths[0.25] == [16, 32, 64, 128, 256] and widths[0.5] == [32, 64, 128, 256, 512]
    assert widths[0.75] == [48, 96, 192, 384, 768] and widths[1.25] == [80, 160, 320, 640, 1280]
    assert yolov5.widths_of(4, 0.5) == [32, 64, 128, 256, 384, 512]
    assert yolov5.widths_of(3, 0.3) == [24, 40, 80, 160, 312], "up to a multiple of 8"
    depths = {m: [yolov5.scaled_depth(n, m) for n in (3, 6, 9)] for m in (0.33, 0.67, 1.0, 1.33)}
    assert depths == {0.33: [1, 2, 3], 0.67: [2, 4, 6], 1.0: [3, 6, 9], 1.33: [4, 8, 12]}
    assert yolov5.scaled_depth(1, 0.33) == 1


def test_a_square_of_pixels_becomes_channels_by_columns():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    found = yolov5.corners(image)
    np.testing.assert_array_equal(found[0, 0, 0], [0, 4, 1, 5])
    np.testing.assert_array_equal(found[0, 1, 1], [10, 14, 11, 15])


def test_pyramid_pooling_has_three_windows():
    """With identity convolutions: the input and the maxima are concatenated."""
    x = np.random.default_rng(0).uniform(size=(1, 9, 8, 4)).astype(np.float32)
    module = yolov5.SPP(8, 3, norm="none", activation=lambda x: x)
    kernels = {"conv1": np.eye(4, 2), "conv2": np.eye(8)}
    params = {
        name: {"conv": {"kernel": kernel[None, None], "bias": np.zeros(len(kernel.T))}}
        for name, kernel in kernels.items()
    }
    found = tiny.jit(lambda x: module.apply({"params": params}, x, False))(x)
    np.testing.assert_array_equal(found[..., :2], x[..., :2])
    for i, window in enumerate((3, 5, 7), start=1):
        padded = np.pad(x[0, :, :, :2], [(window // 2,) * 2] * 2 + [(0, 0)], constant_values=-1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (window, window), (0, 1))
        np.testing.assert_array_equal(found[0, :, :, 2 * i : 2 * i + 2], windows.max((-2, -1)))


@pytest.mark.parametrize("pool, shortcut", [("spp", False), ("sppf", True)])
def test_the_last_block_has_shortcuts_where_pooling_comes_after_it(pool, shortcut):
    seen = {}

    def note(next_call, args, kwargs, context):
        if isinstance(context.module, yolov5.Block) and context.method_name == "__call__":
            seen[context.module.name] = context.module.shortcut
        return next_call(*args, **kwargs)

    backbone = yolov5.Backbone((1, 1, 1, 1), width_multiple=0.0625, pool=pool)
    with nn.intercept_methods(note):
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        jax.eval_shape(lambda x: backbone.init(KEY, x, False), images)
    assert seen.pop("stage5_block") == shortcut and all(seen.values()) and len(seen) == 3


def test_features_are_those_of_stride_8_and_up_in_both_forms_of_the_stem():
    for stem in yolov5.STEMS:
        backbone = yolov5.Backbone((1,) * 5, width_multiple=0.0625, stem=stem)
        images = jax.ShapeDtypeStruct((2, 128, 192, 3), jnp.float32)
        init = jax.eval_shape(lambda x, m=backbone: m.init_with_output(KEY, x, False), images)
        shapes = [x.shape for x in init[0]]
        assert shapes == [
            (2, 128 // s, 192 // s, d) for s, d in zip((8, 16, 32, 64), (16, 32, 48, 64))
        ]
        kernel = init[1]["params"]["stem"]["conv"]["kernel"].shape
        assert kernel == ((3, 3, 12, 8) if stem == "focus" else (6, 6, 3, 8))
