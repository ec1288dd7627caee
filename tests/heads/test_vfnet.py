"""The head of VFNet against plain loops, its star, and where its gradients go."""

import functools

import jax
import numpy as np
import pytest
import slow_head
import tiny

from detlab.heads import vfnet as head_lib

STRIDES, UNITS = (8, 16), (12.0, 24.0)
FIELDS = dict(num_classes=2, strides=STRIDES, units=UNITS, num_convs=1, width=4, norm_groups=2)


def test_the_star_by_hand():
    """Corners, middles of the sides and the point itself, by rows."""
    points = head_lib.star(np.float32([1, 2, 3, 4])).reshape(3, 3, 2)
    assert points[..., 0].tolist() == [[-2] * 3, [0] * 3, [4] * 3]  # y
    assert points[..., 1].tolist() == [[-1, 0, 3]] * 3  # x
    regular = head_lib.star(np.ones((2, 4), np.float32)).reshape(2, 9, 2)
    np.testing.assert_array_equal(regular, [slow_head.TAPS] * 2)


def slow_vfnet(x, params, level):
    """One image of one level, [H, W, D] -> the three maps."""
    relu, convolve = functools.partial(np.maximum, 0), slow_head.convolve

    def conv_norm(x, name):
        layer = params[name]
        groups = convolve(x, layer["conv"]).reshape(-1, 2, 2)  # [H W, group, channel]
        mean, variance = (f(groups, axis=(0, 2), keepdims=True) for f in (np.mean, np.var))
        normed = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(*x.shape[:2], 4)
        return relu(normed * layer["norm"]["scale"] + layer["norm"]["bias"])

    def distances(x, name):
        scale = params[f"{name}_scales"][f"scale{level}"]
        return np.exp(scale * convolve(x, params[f"{name}_distances"]))

    cls, box = (conv_norm(x, f"{tower}_conv0") for tower in ("cls", "box"))
    init = UNITS[level] * distances(conv_norm(box, "init_conv0"), "init")
    places = np.zeros((*x.shape[:2], 9, 2))
    for i, j in np.ndindex(*x.shape[:2]):
        left, top, right, bottom = init[i, j] / STRIDES[level]
        places[i, j] = [(y, x) for y in (-top, 0, bottom) for x in (-left, 0, right)]
    refine = init * distances(relu(convolve(box, params["refine_deform"], places)), "refine")
    hidden = relu(convolve(cls, params["cls_deform"], places))
    return {
        "cls_logits": convolve(hidden, params["cls_logits"]),
        "init_distances": init,
        "refine_distances": refine,
    }


def test_all_maps_equal_plain_loops():
    module = head_lib.VFNetHead(**FIELDS)
    params = slow_head.random_params(module)
    apply = tiny.jit(functools.partial(module.apply, train=False))
    found = apply({"params": params}, slow_head.pyramid())
    for level, images in enumerate(slow_head.pyramid()):
        for i, image in enumerate(images):
            expected = slow_vfnet(image.astype(np.float64), params, level)
            assert expected.keys() == found.keys()
            for name, values in expected.items():
                # Positions of order 10 cells move samples by their rounding of 1e-6.
                np.testing.assert_allclose(
                    found[name][level][i], values, rtol=1e-4, atol=1e-4, err_msg=name
                )


@pytest.mark.slow
def test_the_first_round_learns_from_the_last_maps_as_sampling_places_alone():
    """A tenth of the gradient passes."""
    params = slow_head.random_params(head_lib.VFNetHead(**FIELDS))

    @tiny.jit
    def gradients(params, offset_gradient):
        module = head_lib.VFNetHead(**FIELDS, offset_gradient=offset_gradient)

        def total(params):
            maps = module.apply({"params": params}, slow_head.pyramid(), train=False)
            return sum(x.sum() for x in (*maps["cls_logits"], *maps["refine_distances"]))

        return jax.grad(total)(params)

    none, part, whole = (gradients(params, factor) for factor in (0.0, 0.1, 1.0))
    for leaf in ("kernel", "bias"):
        first, tenth, all_of_it = (x["init_distances"][leaf] for x in (none, part, whole))
        # The second distances are multiples of the first, but give them no gradient.
        assert not np.any(first) and np.any(all_of_it)
        scale = np.abs(all_of_it).max()
        np.testing.assert_allclose(tenth - 0.1 * all_of_it, 0, atol=1e-5 * scale)
    for name in ("refine_distances", "refine_deform", "cls_deform", "cls_logits"):
        np.testing.assert_array_equal(none[name]["kernel"], whole[name]["kernel"])
