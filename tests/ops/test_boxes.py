"""Box formats, changes and overlap measures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab.ops import boxes as boxes_lib

MEASURES = {
    name: jax.jit(getattr(boxes_lib, name)) for name in ("iou", "iof", "giou", "diou", "ciou")
}
pairwise = jax.jit(boxes_lib.pairwise, static_argnums=0)
SEED = 0


def random_boxes(shape, low=-50.0, high=150.0, seed=SEED):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(low, high, (*shape, 2, 2))
    return np.sort(corners, axis=-2).reshape(*shape, 4).astype(np.float32)


def slow_iou(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area_a + area_b - width * height)


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
def test_overlaps_equal_the_reference(unit_cases, mode):
    cases = unit_cases("boxes")
    measure = MEASURES[mode]
    case, arrays = cases[f"overlaps_{mode}"]
    out = pairwise(measure, arrays["a"], arrays["b"])
    np.testing.assert_allclose(out, arrays["out"], **case["tolerance"])
    case, arrays = cases[f"overlaps_{mode}_aligned"]
    np.testing.assert_allclose(
        measure(arrays["a"], arrays["b"]), arrays["out"], **case["tolerance"]
    )


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
def test_overlap_gradients_equal_the_reference(unit_cases, mode):
    case, arrays = unit_cases("boxes")[f"overlaps_{mode}_gradient"]

    @jax.jit
    def value_and_vjp(a, b, cotangent):
        out, vjp = jax.vjp(MEASURES[mode], a, b)
        return out, vjp(cotangent)

    out, gradients = value_and_vjp(arrays["a"], arrays["b"], arrays["cot_out"])
    np.testing.assert_allclose(out, arrays["out"], **case["tolerance"])
    for gradient, name in zip(gradients, ("grad_a", "grad_b")):
        np.testing.assert_allclose(gradient, arrays[name], **case["tolerance"])


@pytest.mark.parametrize("name", ["overlaps_no_a", "overlaps_no_b", "overlaps_none"])
def test_overlaps_of_no_boxes_have_the_right_shape(unit_cases, name):
    _, arrays = unit_cases("boxes")[name]
    assert boxes_lib.pairwise_iou(arrays["a"], arrays["b"]).shape == arrays["out"].shape


def test_overlaps_by_hand():
    a = jnp.array([0.0, 0.0, 10.0, 10.0])
    b = jnp.array([5.0, 0.0, 15.0, 10.0])
    apart = jnp.array([20.0, 0.0, 30.0, 10.0])
    np.testing.assert_allclose(boxes_lib.iou(a, b), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(boxes_lib.iof(a, b), 1 / 2, rtol=1e-6)
    np.testing.assert_allclose(boxes_lib.giou(a, b), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(boxes_lib.giou(a, apart), -1 / 3, rtol=1e-6)
    np.testing.assert_allclose(boxes_lib.diou(a, b), 1 / 3 - 25 / 325, rtol=1e-6)
    np.testing.assert_allclose(boxes_lib.diou(a, apart), -400 / 1000, rtol=1e-6)
    np.testing.assert_allclose(boxes_lib.ciou(a, b), boxes_lib.diou(a, b), rtol=1e-6)


def test_ciou_adds_the_aspect_ratio_above_half_overlap():
    a = jnp.array([0.0, 0.0, 10.0, 10.0])
    b = jnp.array([0.0, 0.0, 10.0, 8.0])
    v = 4 / np.pi**2 * (np.arctan(10 / 8) - np.arctan(1)) ** 2
    expected = boxes_lib.diou(a, b) - v * v / (1 - 0.8 + v)
    np.testing.assert_allclose(boxes_lib.ciou(a, b), expected, rtol=1e-5)


def test_ciou_of_yolov5_adds_the_aspect_ratio_below_half_overlap_too():
    a = jnp.array([0.0, 0.0, 10.0, 10.0])
    b = jnp.array([0.0, 0.0, 10.0, 4.0])
    np.testing.assert_array_equal(boxes_lib.ciou(a, b), boxes_lib.diou(a, b))
    v = 4 / np.pi**2 * (np.arctan(10 / 4) - np.arctan(1)) ** 2
    expected = boxes_lib.diou(a, b) - v * v / (1 - 0.4 + v)
    np.testing.assert_allclose(boxes_lib.ciou(a, b, ratio_above=-1.0), expected, rtol=1e-5)


def test_pairwise_iou_equals_a_slow_loop():
    a, b = random_boxes((2, 9)), random_boxes((2, 6), seed=SEED + 1)
    out = jax.jit(boxes_lib.pairwise_iou)(a, b)
    expected = [[[slow_iou(x, y) for y in b[i]] for x in a[i]] for i in range(2)]
    assert out.shape == (2, 9, 6)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)  # float32 areas


@pytest.mark.parametrize("mode", ["iou", "giou", "diou", "ciou"])
def test_overlap_is_symmetric_at_most_iou_and_one_for_identical_boxes(mode):
    a, b = random_boxes((200,)), random_boxes((200,), seed=SEED + 1)
    forward, backward = MEASURES[mode](a, b), MEASURES[mode](b, a)
    np.testing.assert_allclose(forward, backward, rtol=1e-5, atol=1e-6)
    assert np.all(forward <= boxes_lib.iou(a, b) + 1e-6)
    np.testing.assert_allclose(MEASURES[mode](a, a), 1.0, rtol=1e-5)


@pytest.mark.parametrize("mode", MEASURES)
def test_boxes_without_area_give_no_nan(mode):
    boxes = jnp.array([[0.0, 0, 0, 0], [5, 5, 5, 9], [5, 5, 9, 5], [0, 0, 1, 1], [5, 5, 5, 5]])
    a, b = jnp.repeat(boxes, 5, axis=0), jnp.tile(boxes, (5, 1))  # every pair
    value, gradients = jax.jit(jax.value_and_grad(lambda x: MEASURES[mode](*x).sum()))((a, b))
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_two_boxes_without_area_have_no_overlap():
    assert boxes_lib.iou(jnp.zeros(4), jnp.zeros(4)) == 0.0


@pytest.mark.parametrize("mode", MEASURES)
def test_gradients_equal_finite_differences(mode):
    with jax.enable_x64(True):
        a = jnp.asarray(random_boxes((40,)), jnp.float64)
        b = a + jax.random.uniform(jax.random.key(SEED), a.shape, jnp.float64, -9, 9)
        # CIoU's alpha is a constant for the gradient: compare where the ratio does not count.
        keep = boxes_lib.iou(a, b) < 0.5 if mode == "ciou" else jnp.ones(len(a), bool)
        assert keep.sum() >= 5

        @jax.jit
        def total(x):
            return jnp.where(keep, MEASURES[mode](x, b), 0.0)

        gradient = jax.jit(jax.grad(lambda x: total(x).sum()))(a)
        h = 1e-5
        for i in range(4):
            step = jnp.zeros(4).at[i].set(h)
            numeric = (total(a + step) - total(a - step)) / (2 * h)
            np.testing.assert_allclose(gradient[:, i], numeric, rtol=1e-5, atol=1e-8)


def test_formats_by_hand_and_back():
    xyxy = jnp.array([[10.0, 20.0, 30.0, 60.0]])
    np.testing.assert_array_equal(boxes_lib.xyxy_to_cxcywh(xyxy), [[20, 40, 20, 40]])
    np.testing.assert_array_equal(boxes_lib.xyxy_to_xywh(xyxy), [[10, 20, 20, 40]])
    np.testing.assert_array_equal(boxes_lib.cxcywh_to_xyxy(boxes_lib.xyxy_to_cxcywh(xyxy)), xyxy)
    np.testing.assert_array_equal(boxes_lib.xywh_to_xyxy(boxes_lib.xyxy_to_xywh(xyxy)), xyxy)
    np.testing.assert_array_equal(boxes_lib.area(xyxy), [800])


def test_flip_twice_is_the_identity():
    boxes = jnp.array([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 100.0, 5.0]])
    flipped = boxes_lib.flip_horizontal(boxes, 100)
    np.testing.assert_array_equal(flipped, [[70, 20, 90, 60], [0, 0, 100, 5]])
    np.testing.assert_array_equal(boxes_lib.flip_horizontal(flipped, 100), boxes)


def test_clip_moves_boxes_into_a_traced_size():
    boxes = jnp.array([[-5.0, -6.0, 120.0, 130.0], [3.0, 4.0, 5.0, 6.0], [200.0, 0.0, 210.0, 9.0]])
    clipped = jax.jit(boxes_lib.clip)(boxes, 80, 100)
    np.testing.assert_array_equal(clipped, [[0, 0, 100, 80], [3, 4, 5, 6], [100, 0, 100, 9]])


def test_clip_passes_the_gradient_of_a_coordinate_on_the_border():
    gradient = jax.jit(jax.grad(lambda x: boxes_lib.clip(x, 80, 100).sum()))
    np.testing.assert_array_equal(gradient(jnp.array([0.0, -1.0, 100.0, 81.0])), [1, 0, 1, 0])


def test_scale_takes_one_factor_or_one_per_axis():
    boxes = jnp.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    np.testing.assert_array_equal(boxes_lib.scale(boxes, 2), 2 * boxes)
    np.testing.assert_array_equal(
        boxes_lib.scale(boxes, (2, 10)), [[2, 20, 6, 40], [10, 60, 14, 80]]
    )
    per_box = jnp.array([[2.0, 10.0], [1.0, 0.0]])
    np.testing.assert_array_equal(boxes_lib.scale(boxes, per_box), [[2, 20, 6, 40], [5, 0, 7, 0]])
