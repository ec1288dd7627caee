"""The head of RepPoints V2 against plain loops, and where its gradients go."""

import functools

import jax
import numpy as np
import pytest
import slow_head as slow
import tiny
from flax import traverse_util

from detlab.heads import reppoints_v2 as head_lib

FIELDS = dict(num_classes=2, num_convs=1, width=4, pool_width=4, point_width=3, norm_groups=2)
relu = functools.partial(np.maximum, 0)


def params_of(module):
    """Random kernels; norms that neither scale nor shift much, and features of order one."""
    init = functools.partial(module.init, train=False)
    tree = jax.eval_shape(init, jax.random.key(0), slow.pyramid())["params"]
    rng = np.random.default_rng(1)

    def leaf(path, x):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(centre, 0.3, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def norm(x, params, groups=2):
    """Group norm of one image [H, W, D]."""
    parts = x.reshape(*x.shape[:2], groups, -1)
    mean = parts.mean((0, 1, 3), keepdims=True)
    var = ((parts - mean) ** 2).mean((0, 1, 3), keepdims=True)
    return ((parts - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * params["scale"] + params[
        "bias"
    ]


def layer(x, params):
    """A convolution and its norm."""
    return norm(slow.convolve(x, params["conv"]), params["norm"])


def pool(x, params, kind):
    """The sum of maxima from each cell to two borders, in a residual block."""
    first, second = (relu(layer(x, params[name])) for name in ("first", "second"))
    pooled = np.zeros_like(first)
    for i, j in np.ndindex(*x.shape[:2]):
        if kind == "top_left":
            pooled[i, j] = first[i:, j].max(0) + second[i, j:].max(0)
        else:
            pooled[i, j] = first[: i + 1, j].max(0) + second[i, : j + 1].max(0)
    out = relu(layer(pooled, params["pooled"]) + layer(x, params["shortcut"]))
    return relu(layer(out, params["out"]))


def slow_head(x, params):
    """One image of one level, [H, W, D] -> the six maps."""
    cls, point = (relu(layer(x, params[f"{name}_conv0"])) for name in ("cls", "point"))
    shared = relu(layer(point, params["shared_conv0"]))
    embedding = relu(layer(shared, params["semantic_embedding"]))
    found = {"semantic_logits": slow.convolve(shared, params["semantic_logits"])}
    cls, point, shared = (y + embedding for y in (cls, point, shared))
    heat, offset = [], []
    for kind in ("top_left", "bottom_right"):
        pooled = pool(shared, params[f"{kind}_pool"], kind)
        heat.append(slow.convolve(pooled, params[f"{kind}_heat"]))
        offset.append(slow.convolve(pooled, params[f"{kind}_offset"]))
    found["corner_logits"], found["corner_offsets"] = (
        np.concatenate(both, -1) for both in (heat, offset)
    )
    hidden = relu(slow.convolve(point, params["init_conv"]))
    init = slow.convolve(hidden, params["init_points"])
    places = init.reshape(*x.shape[:2], 9, 2)
    cls, point = (np.concatenate([y, *heat, *offset], -1) for y in (cls, point))
    hidden = relu(slow.convolve(point, params["refine_deform"], places))
    found |= {
        "init_points": init,
        "refine_points": init + slow.convolve(hidden, params["refine_points"]),
    }
    hidden = relu(slow.convolve(cls, params["cls_deform"], places))
    return found | {"cls_logits": slow.convolve(hidden, params["cls_logits"])}


def test_all_maps_equal_plain_loops():
    module = head_lib.RepPointsV2Head(**FIELDS)
    params = params_of(module)
    found = tiny.jit(functools.partial(module.apply, train=False))(
        {"params": params}, slow.pyramid()
    )
    for level, images in enumerate(slow.pyramid()):
        for i, image in enumerate(images):
            expected = slow_head(image.astype(np.float64), params)
            assert expected.keys() == found.keys()
            for name, values in expected.items():
                # Positions of order 10 cells move samples by their rounding of 1e-6.
                np.testing.assert_allclose(
                    found[name][level][i], values, rtol=1e-4, atol=2e-4, err_msg=name
                )


@pytest.mark.slow
def test_points_and_classes_teach_corners_through_maps_and_features():
    """And foreground through features alone: its logits are no input of any other map."""
    module = head_lib.RepPointsV2Head(**FIELDS)
    params = params_of(module)

    @tiny.jit
    def gradients(params):
        def total(params):
            maps = module.apply({"params": params}, slow.pyramid(), train=False)
            return sum((x**2).sum() for x in (*maps["cls_logits"], *maps["refine_points"]))

        return jax.grad(total)(params)

    found = traverse_util.flatten_dict(gradients(params), sep="/")
    learns = {name.split("/")[0] for name, x in found.items() if np.any(x)}
    assert {p.split("/")[0] for p in found} - learns == {"semantic_logits"}


@pytest.mark.slow
def test_the_first_round_learns_from_the_last_maps_as_sampling_places_alone():
    params = params_of(head_lib.RepPointsV2Head(**FIELDS))

    @tiny.jit
    def run(params, offset_gradient):
        module = head_lib.RepPointsV2Head(**FIELDS, offset_gradient=offset_gradient)

        def total(params):
            maps = module.apply({"params": params}, slow.pyramid(), train=False)
            return sum(x.sum() for x in (*maps["cls_logits"], *maps["refine_points"]))

        return jax.grad(total)(params)

    none, part, whole = (run(params, factor) for factor in (0.0, 0.1, 1.0))
    for name in ("init_points", "init_conv"):
        for leaf in ("kernel", "bias"):
            assert not np.any(none[name][leaf]) and np.any(whole[name][leaf])
            scale = np.abs(whole[name][leaf]).max()
            difference = part[name][leaf] - 0.1 * whole[name][leaf]
            np.testing.assert_allclose(difference, 0, atol=1e-5 * scale)
