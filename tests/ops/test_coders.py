"""Box coders."""

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
    """Values, and the gradients that the case has, of `function(*inputs)`."""

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
