"""Box coders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab.ops import coders

SEED = 0
encode_buckets = jax.jit(coders.encode_buckets, static_argnums=(2, 3, 4))
decode_buckets = jax.jit(coders.decode_buckets, static_argnums=(3, 4, 5))


def random_boxes(count, seed=SEED):
    rng = np.random.default_rng(seed)
    low, size = rng.uniform(0, 60, (count, 2)), rng.uniform(5, 60, (count, 2))
    return np.concatenate([low, low + size], axis=-1).astype(np.float32)


def check(case, arrays, function, inputs):
    """Checks the values of `function(*inputs)`, and the gradients that the case records."""

    @jax.jit
    def value_and_vjp(values, cotangent):
        out, vjp = jax.vjp(function, *values)
        return out, vjp(cotangent)

    cotangent = arrays.get("cot_out", np.zeros_like(arrays["out"]))
    out, gradients = value_and_vjp([arrays[name] for name in inputs], cotangent)
    np.testing.assert_allclose(out, arrays["out"], **case["tolerance"])
    if "cot_out" in arrays:
        for name, gradient in zip(inputs, gradients):
            if f"grad_{name}" in arrays:
                np.testing.assert_allclose(
                    gradient, arrays[f"grad_{name}"], **case["tolerance"], err_msg=name
                )


@pytest.mark.parametrize("name", ["delta_encode_rpn", "delta_encode_rcnn"])
def test_encode_deltas_equals_the_reference(unit_cases, name):
    case, arrays = unit_cases("boxes")[name]
    args = case["args"]

    def encode(rois, gts):
        return coders.encode_deltas(rois, gts, args["stds"], args["means"])

    check(case, arrays, encode, ("rois", "gts"))


@pytest.mark.parametrize(
    "name",
    [
        "delta_decode_rpn",
        "delta_decode_rpn_clip",
        "delta_decode_rcnn",
        "delta_decode_rcnn_clip",
        "delta_decode_classes",
    ],
)
def test_decode_deltas_equals_the_reference(unit_cases, name):
    case, arrays = unit_cases("boxes")[name]
    args = case["args"]
    assert abs(np.log(args["wh_ratio_clip"])) == coders.MAX_LOG_RATIO

    def decode(rois, delta):
        delta = delta.reshape(len(delta), -1, 4)  # [N, classes, 4]
        out = coders.decode_deltas(
            rois[:, None], delta, args["stds"], args["means"], args["max_shape"]
        )
        return out.reshape(len(delta), -1)

    check(case, arrays, decode, ("rois", "delta"))


@pytest.mark.parametrize("name", ["distance_encode", "distance_encode_max"])
def test_encode_ltrb_equals_the_reference(unit_cases, name):
    case, arrays = unit_cases("boxes")[name]

    def encode(points, boxes):
        return coders.encode_ltrb(points, boxes, case["args"]["max_dis"])

    check(case, arrays, encode, ("points", "boxes"))


@pytest.mark.parametrize("name", ["distance_decode", "distance_decode_clip"])
def test_decode_ltrb_equals_the_reference(unit_cases, name):
    case, arrays = unit_cases("boxes")[name]

    def decode(points, dist):
        return coders.decode_ltrb(points, dist, case["args"]["max_shape"])

    check(case, arrays, decode, ("points", "dist"))


def test_the_mean_of_a_distribution_equals_a_slow_sum_and_stays_among_its_numbers():
    logits = np.random.default_rng(SEED).normal(0, 4, (5, 4, 9))
    logits[0] = [[1e4] + [0] * 8, [0] * 8 + [1e4], [-1e4] * 9, [0] * 9]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    expected = sum(k * p[..., k] for k in range(9)) / p.sum(-1)
    found = jax.jit(coders.decode_distribution)(np.float32(logits))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[0], [0, 8, 4, 4], atol=1e-5)


def test_encode_yolo_equals_the_reference(unit_cases):
    case, arrays = unit_cases("boxes")["yolo_encode"]
    out = jax.jit(coders.encode_yolo)(
        arrays["anchors"], arrays["boxes"], arrays["stride"].reshape(-1)
    )
    np.testing.assert_allclose(out, arrays["out"], **case["tolerance"])


def test_decode_yolo_equals_the_reference(unit_cases):
    case, arrays = unit_cases("boxes")["yolo_decode"]

    def decode(pred):
        return coders.decode_yolo(arrays["anchors"], pred, arrays["stride"].reshape(-1))

    check(case, arrays, decode, ("pred",))


@pytest.mark.parametrize(
    "name", ["bucket_encode_14_1.7", "bucket_encode_14_1.7_all", "bucket_encode_7_3.0"]
)
def test_encode_buckets_equals_the_reference(unit_cases, name):
    case, arrays = unit_cases("boxes")[name]
    args = case["args"]
    buckets = encode_buckets(
        arrays["rois"],
        arrays["gts"],
        args["num_buckets"],
        args["scale_factor"],
        args["cls_ignore_neighbor"],
    )
    for field, values in buckets._asdict().items():
        expected = arrays[field].reshape(values.shape)
        np.testing.assert_allclose(values, expected, **case["tolerance"], err_msg=field)


@pytest.mark.parametrize(
    "name",
    [
        f"bucket_decode_{kind}"
        for kind in (
            "14_1.7",
            "14_1.7_clip",
            "14_1.7_all",
            "14_1.7_all_clip",
            "7_3.0",
            "7_3.0_clip",
        )
    ],
)
def test_decode_buckets_equals_the_reference(unit_cases, name):
    case, arrays = unit_cases("boxes")[name]
    args = case["args"]
    count = len(arrays["rois"])
    boxes, confidence = decode_buckets(
        arrays["rois"],
        arrays["cls"].reshape(count, 4, -1),
        arrays["offset"].reshape(count, 4, -1),
        args["num_buckets"],
        args["scale_factor"],
        args["max_shape"] and tuple(args["max_shape"]),
    )
    np.testing.assert_allclose(boxes, arrays["boxes"], **case["tolerance"])
    np.testing.assert_allclose(confidence, arrays["confidence"], **case["tolerance"])


@pytest.mark.parametrize("transform", coders.POINT_TRANSFORMS)
@pytest.mark.parametrize("order", ["yx", "xy"])
def test_boxes_of_points_equal_the_reference(unit_cases, transform, order):
    case, arrays = unit_cases("priors")[f"points2bbox_{transform}_{order}"]

    def boxes(pts, *transfer):
        pairs = jnp.moveaxis(pts, 1, -1).reshape(2, 4, 5, 9, 2)
        pairs = pairs[..., ::-1] if order == "yx" else pairs
        out = coders.points_to_boxes(pairs, transform, *transfer, case["args"]["moment_mul"])
        return jnp.moveaxis(out, -1, 1)

    if transform != "moment":
        return check(case, arrays, lambda pts: boxes(pts, None), ("pts",))
    check(case, arrays, boxes, ("pts", "transfer"))


def test_boxes_of_points_by_hand():
    """Nine points on a line of slope 2; the first four end at x = 3."""
    x = np.arange(9, dtype=np.float32)
    points = np.stack([x, 2 * x], -1)
    boxes = functools.partial(coders.points_to_boxes, points)
    np.testing.assert_array_equal(boxes("minmax"), [0, 0, 8, 16])
    np.testing.assert_array_equal(boxes("partial_minmax"), [0, 0, 3, 6])
    half = np.sqrt(7.5) * np.float32([3, 2])  # variance of 0..8 with n - 1, times 3 and 2
    expected = [4 - half[0], 8 - 2 * half[1], 4 + half[0], 8 + 2 * half[1]]
    np.testing.assert_allclose(boxes("moment", np.log([3.0, 2.0])), expected, rtol=1e-6)


@pytest.mark.parametrize("transform", coders.POINT_TRANSFORMS)
def test_boxes_of_points_move_and_grow_with_them(transform):
    points = np.random.default_rng(SEED).normal(size=(5, 9, 2)).astype(np.float32)
    transfer = np.float32([0.3, -0.2])
    box = coders.points_to_boxes(points, transform, transfer)
    moved = coders.points_to_boxes(4 * points + np.float32([10, 20]), transform, transfer)
    np.testing.assert_allclose(moved, 4 * box + np.float32([10, 20, 10, 20]), rtol=1e-5)


def test_points_in_one_place_have_a_finite_gradient():
    def total(points, transfer):
        return coders.points_to_boxes(points, "moment", transfer)[..., 2:].sum()

    place, zeros = np.full((3, 9, 2), 0.1, np.float32), np.zeros(2, np.float32)
    run = jax.jit(jax.value_and_grad(total, (0, 1)))
    value, gradients = run(place, zeros)
    np.testing.assert_allclose(value, 0.6, rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    _, (still, _) = run(np.zeros_like(place), zeros)
    np.testing.assert_allclose(still, 1 / 9, rtol=1e-6)  # the gradient of the mean alone


def test_bad_points_are_refused():
    points = np.zeros((9, 2), np.float32)
    with pytest.raises(ValueError, match="transform 'median' is not one of moment, minmax"):
        coders.points_to_boxes(points, "median")
    with pytest.raises(ValueError, match="'moment' needs transfer and at least two points, not 9"):
        coders.points_to_boxes(points, "moment")
    with pytest.raises(ValueError, match="at least two points, not 1"):
        coders.points_to_boxes(points[:1], "moment", np.zeros(2))


def test_a_grid_goes_by_rows_from_corner_to_corner():
    found = coders.boxes_to_grid(jnp.array([[0.0, 10.0, 4.0, 30.0], [1.0, 1.0, 1.0, 1.0]]), 3)
    rows = [[x, y] for y in (10, 20, 30) for x in (0, 2, 4)]
    np.testing.assert_array_equal(found, [rows, [[1, 1]] * 9])
    boxes = random_boxes(20)
    around = coders.points_to_boxes(coders.boxes_to_grid(jnp.asarray(boxes), 5), "minmax")
    np.testing.assert_allclose(around, boxes, rtol=1e-6)


def test_deltas_by_hand():
    anchor, box = jnp.array([0.0, 0.0, 10.0, 20.0]), jnp.array([5.0, 0.0, 25.0, 20.0])
    deltas = coders.encode_deltas(anchor, box, stds=(0.1, 0.1, 0.2, 0.2))
    np.testing.assert_allclose(deltas, [10.0, 0.0, np.log(2) / 0.2, 0.0], rtol=1e-6)


def test_decoding_undoes_encoding():
    anchors, boxes = random_boxes(100), random_boxes(100, SEED + 1)
    points = (anchors[:, :2] + anchors[:, 2:]) / 2
    stds, means = (0.1, 0.1, 0.2, 0.2), (0.1, 0.0, -0.2, 0.3)

    @jax.jit
    def there_and_back(anchors, boxes, points):
        deltas = coders.encode_deltas(anchors, boxes, stds, means)
        distances = coders.encode_ltrb(points, boxes)
        return (
            coders.decode_deltas(anchors, deltas, stds, means),
            coders.decode_ltrb(points, distances),
        )

    for decoded in there_and_back(anchors, boxes, points):
        # Coordinates of about 100 px, a few float32 operations of 6e-8 relative error each.
        np.testing.assert_allclose(decoded, boxes, atol=1e-4)


def test_decoding_undoes_encoding_for_yolo_where_the_centre_is_in_the_cell():
    anchors = random_boxes(100)
    rng = np.random.default_rng(SEED)
    shift = rng.uniform(-3.9, 3.9, (100, 2))
    boxes = (anchors + np.concatenate([shift, shift], axis=-1)).astype(np.float32)
    strides = np.full(100, 8.0, np.float32)
    encoded = jax.jit(coders.encode_yolo)(anchors, boxes, strides)
    decoded = jax.jit(coders.decode_yolo)(anchors, encoded, strides)
    np.testing.assert_allclose(decoded, boxes, atol=1e-4)


def test_decoding_undoes_encoding_for_buckets_of_confident_labels():
    rois = random_boxes(100)
    boxes = rois + np.random.default_rng(SEED).uniform(-4, 4, rois.shape).astype(np.float32)
    buckets = encode_buckets(rois, boxes, 14, 1.7, True)
    decoded, confidence = decode_buckets(rois, 100 * buckets.labels, buckets.offsets, 14, 1.7, None)
    np.testing.assert_allclose(decoded, boxes, atol=1e-4)
    np.testing.assert_allclose(confidence, 1.0, rtol=1e-6)


def test_large_log_ratios_are_bounded():
    anchor = jnp.array([0.0, 0.0, 16.0, 16.0])
    box = coders.decode_deltas(anchor, jnp.array([0.0, 0.0, 1e4, -1e4]))
    np.testing.assert_allclose(box[2] - box[0], 1000, rtol=1e-5)
    np.testing.assert_allclose(box[3] - box[1], 16 * 16 / 1000, rtol=1e-3)


def test_clip_takes_a_traced_image_size_per_image():
    anchors = jnp.broadcast_to(jnp.array([0.0, 0.0, 100.0, 100.0]), (2, 3, 4))
    sizes = jnp.array([[50, 60], [70, 80]])
    boxes = jax.vmap(lambda a, size: coders.decode_deltas(a, jnp.zeros_like(a), max_size=size))(
        anchors, sizes
    )
    np.testing.assert_array_equal(boxes[:, 0], [[0, 0, 60, 50], [0, 0, 80, 70]])


ENCODERS = {
    "deltas": coders.encode_deltas,
    "ltrb": lambda anchors, boxes: coders.encode_ltrb(anchors[:, :2], boxes),
    "yolo": lambda anchors, boxes: coders.encode_yolo(anchors, boxes, jnp.ones(len(boxes))),
    "buckets": lambda anchors, boxes: coders.encode_buckets(anchors, boxes, 14, 1.7).offsets,
}


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_without_area_is_finite_and_has_finite_gradients(name):
    zero, real = [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 8.0, 8.0]
    anchors, boxes = jnp.array([zero, zero, real]), jnp.array([zero, real, zero])
    value, gradients = jax.jit(jax.value_and_grad(lambda x: ENCODERS[name](*x).sum()))(
        (anchors, boxes)
    )
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
