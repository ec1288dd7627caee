"""The head of RepPoints against plain loops, and where its gradients go."""

import functools

import jax
import numpy as np
import pytest
import slow_head as slow
import tiny

from detlab.heads import reppoints as head_lib

FIELDS = dict(num_classes=2, num_convs=1, width=4, point_width=3, norm="none")
FORMS = {
    "points": dict(transform="moment"),
    "grid": dict(transform="minmax", use_grid_points=True, base_scale=3.0),
}


def slow_boxes(points, transfer):
    """Mean and deviations of [..., 9, 2] y, x -> [..., 4] xyxy."""
    y, x = points[..., 0], points[..., 1]
    half_x, half_y = (v.std(-1, ddof=1) * np.exp(t) for v, t in zip((x, y), transfer))
    x, y = x.mean(-1), y.mean(-1)
    return np.stack([x - half_x, y - half_y, x + half_x, y + half_y], -1)


def slow_grid(deltas, boxes):
    """Boxes moved by x, y, w, h, and nine points y, x in each, by rows."""
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    dx, dy, dw, dh = np.moveaxis(deltas, -1, 0)
    width, height = (x2 - x1) * np.exp(dw), (y2 - y1) * np.exp(dh)
    left = (x1 + x2) / 2 + (x2 - x1) * dx - width / 2
    top = (y1 + y2) / 2 + (y2 - y1) * dy - height / 2
    points = [
        np.stack([top + height * i / 2, left + width * j / 2], -1)
        for i in range(3)
        for j in range(3)
    ]
    return np.stack([left, top, left + width, top + height], -1), np.stack(points, -2)


def slow_head(x, params, grid):
    """One image of one level, [H, W, D] -> the five maps."""
    relu = functools.partial(np.maximum, 0)
    cls, point = (relu(slow.convolve(x, params[f"{t}_conv0"]["conv"])) for t in ("cls", "point"))
    predicted = slow.convolve(
        relu(slow.convolve(point, params["init_conv"])), params["init_points"]
    )
    shape = (*x.shape[:2], 9, 2)
    if grid:
        init_boxes, init = slow_grid(predicted, np.array([-1.5, -1.5, 1.5, 1.5]))
    else:
        init = predicted.reshape(shape)
        init_boxes = slow_boxes(init, params["moment_transfer"])
    # The taps of the deformable convolutions lie on the points.
    hidden = relu(slow.convolve(point, params["refine_deform"], init))
    predicted = slow.convolve(hidden, params["refine_points"])
    if grid:
        refine_boxes, refine = slow_grid(predicted, init_boxes)
    else:
        refine = init + predicted.reshape(shape)
        refine_boxes = slow_boxes(refine, params["moment_transfer"])
    hidden = relu(slow.convolve(cls, params["cls_deform"], init))
    return {
        "cls_logits": slow.convolve(hidden, params["cls_logits"]),
        "init_points": init.reshape(*shape[:2], 18),
        "refine_points": refine.reshape(*shape[:2], 18),
        "init_boxes": init_boxes,
        "refine_boxes": refine_boxes,
    }


@pytest.mark.parametrize("form", FORMS)
def test_all_maps_equal_plain_loops(form):
    module = head_lib.RepPointsHead(**FIELDS, **FORMS[form])
    params = slow.random_params(module)
    found = tiny.jit(functools.partial(module.apply, train=False))(
        {"params": params}, slow.pyramid()
    )
    for level, images in enumerate(slow.pyramid()):
        for i, image in enumerate(images):
            expected = slow_head(image.astype(np.float64), params, form == "grid")
            assert expected.keys() == found.keys()
            for name, values in expected.items():
                # Positions of order 10 cells move samples by their rounding of 1e-6.
                np.testing.assert_allclose(
                    found[name][level][i], values, rtol=1e-4, atol=1e-4, err_msg=name
                )


@pytest.mark.parametrize("form", ["points", pytest.param("grid", marks=pytest.mark.slow)])
def test_the_first_round_learns_from_the_last_maps_as_sampling_places_alone(form):
    """A tenth of the gradient passes; the factors of the deviations learn 100 times slower."""
    params = slow.random_params(head_lib.RepPointsHead(**FIELDS, **FORMS[form]))

    @tiny.jit
    def run(params, offset_gradient):
        module = head_lib.RepPointsHead(**FIELDS, **FORMS[form], offset_gradient=offset_gradient)

        def total(params):
            maps = module.apply({"params": params}, slow.pyramid(), train=False)
            last = (*maps["cls_logits"], *(x[..., 2:] for x in maps["refine_boxes"]))
            return sum(x.sum() for x in last)

        return jax.value_and_grad(total)(params)

    none, part, whole = (run(params, factor)[1] for factor in (0.0, 0.1, 1.0))
    for name in ("init_points", "init_conv"):
        for leaf in ("kernel", "bias"):
            # Boxes of the grid form move with those of the first round but give them no gradient.
            assert not np.any(none[name][leaf]) and np.any(whole[name][leaf])
            scale = np.abs(whole[name][leaf]).max()
            difference = part[name][leaf] - 0.1 * whole[name][leaf]
            np.testing.assert_allclose(difference, 0, atol=1e-5 * scale)
    for name in ("refine_points", "refine_deform", "cls_deform", "cls_logits"):
        np.testing.assert_array_equal(none[name]["kernel"], whole[name]["kernel"])
    if form == "points":
        for axis, step in enumerate(0.01 * np.eye(2, dtype=np.float32)):
            above, below = (
                run(params | {"moment_transfer": params["moment_transfer"] + s}, 1.0)[0]
                for s in (step, -step)
            )
            slope = (above - below) / 0.02
            np.testing.assert_allclose(whole["moment_transfer"][axis], 0.01 * slope, rtol=1e-3)


def test_the_taps_are_those_of_a_kernel():
    np.testing.assert_array_equal(head_lib.kernel_grid(3).reshape(9, 2), slow.TAPS)
    points = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    offsets = head_lib.tap_offsets(points, 0.1).reshape(4, 5, 5, 2)
    regular = np.stack(np.meshgrid(range(-2, 3), range(-2, 3), indexing="ij"), -1)
    np.testing.assert_allclose(offsets + regular, points.reshape(4, 5, 5, 2), atol=1e-6)
