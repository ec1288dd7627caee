"""What SABL's heads predict for the sides of a box, and the box head of SABL R-CNN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab.heads import sabl


@pytest.mark.parametrize("num_buckets, per_side", [(14, 7), (7, 4), (3, 2)])
def test_channels_are_the_buckets_of_four_sides(num_buckets, per_side):
    assert sabl.buckets_per_side(num_buckets) == per_side
    outputs = sabl.outputs(num_buckets)
    assert {name: channels for name, (channels, _) in outputs.items()} == {
        "bucket_logits": 4 * per_side,
        "bucket_offsets": 4 * per_side,
    }


def test_sides_come_first():
    assert sabl.by_side(np.arange(12).reshape(1, 12)).tolist() == [
        [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    ]


def test_positions_are_split_between_two_sides_from_outside_inwards():
    found = sabl.split_sides(np.arange(4), 10 + np.arange(4))
    assert found.tolist() == [[0, 1], [3, 2], [10, 11], [13, 12]]  # left, right, top, bottom
    odd = sabl.split_sides(np.arange(3), np.arange(3))
    assert odd[:2].tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize(
    "axis, even, kept", [(1, [[2, 3]], [[1, 2]]), (2, [[1.5], [3.5]], [[1.5], [3.5]])]
)
def test_attention_weighs_the_cells_that_become_one(axis, even, kept):
    """Also where all weights of a row are too small for a float32."""
    cells = np.float32([[1, 2], [3, 4]])[None, :, :, None]
    first_row = np.float32([[9, 9], [-999, -999]])[None, :, :, None]
    for attention, expected in ((np.zeros_like(cells), even), (first_row, kept)):
        found, pull = jax.vjp(lambda *x: sabl.pooled(*x, axis), cells, attention)
        np.testing.assert_allclose(found[0, ..., 0], expected, rtol=1e-6)
        assert all(np.isfinite(x).all() for x in pull(jnp.ones_like(found)))


def test_weights_are_sigmoids():
    cells, logits = np.float32([0, 1, 10]), np.float32([-2, 0.5, 3])
    weights = 1 / (1 + np.exp(-logits))
    found = sabl.pooled(cells[None, :, None, None], logits[None, :, None, None], 1)
    np.testing.assert_allclose(found.ravel(), (cells * weights).sum() / weights.sum(), rtol=1e-6)


def test_upsampling_makes_two_positions_of_each():
    params = {"kernel": np.float32([[[1, 2]], [[10, 20]]]), "bias": np.float32([0, 0.5])}
    found = sabl.Upsample(2).apply({"params": params}, np.float32([[[1], [3]]]))
    assert found.tolist() == [[[1, 2.5], [10, 20.5], [3, 6.5], [30, 60.5]]]


CLASSES, WIDTH, SIDES = 3, 5, 4


def relu(x):
    return np.maximum(x, 0)


def plain_sides(x, params, axis):
    """[S, S, D] of one RoI -> [2 * S, D'] along x or y, position by position."""
    for name in ("conv0", "conv1"):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        x = relu(
            np.array(
                [
                    [
                        np.einsum("ijc,ijcd->d", padded[r : r + 3, c : c + 3], kernel) + bias
                        for c in range(x.shape[1])
                    ]
                    for r in range(x.shape[0])
                ]
            )
        )
    if axis == "y":
        x = x.swapaxes(0, 1)
    attention = params[f"attention_{axis}"]
    weights = 1 / (1 + np.exp(-(x @ attention["kernel"][0, 0] + attention["bias"])))
    pooled = (x * weights).sum(0) / weights.sum(0)  # [S, D]
    conv = params[f"conv_{axis}"]
    taps = conv["kernel"].reshape(3, *conv["kernel"].shape[2:])
    padded = np.pad(pooled, ((1, 1), (0, 0)))
    x = relu(sum(padded[i : i + len(pooled)] @ taps[i] for i in range(3)) + conv["bias"])
    up = params[f"upsample_{axis}"]
    return relu(np.concatenate([[row @ k for k in up["kernel"]] for row in x]) + up["bias"])


def test_outputs_of_the_box_head_are_those_of_the_plain_algorithm():
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(2, 2, 3, 3, 2)))  # two images of two RoIs
    module = sabl.BoxHead(CLASSES, WIDTH, SIDES)

    def everything(module, x):
        return module.classify(x), *module.localise(x)

    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, method=everything))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), variables["params"])
    logits, *buckets = module.apply({"params": params}, x, method=everything)
    assert logits.shape == (2, 2, CLASSES + 1)
    assert [values.shape for values in buckets] == [(2, 2, 4, 3)] * 2
    for roi in np.ndindex(2, 2):
        h = relu(x[roi].astype(np.float64).ravel() @ params["fc"]["kernel"] + params["fc"]["bias"])
        expected = h @ params["cls_logits"]["kernel"] + params["cls_logits"]["bias"]
        np.testing.assert_allclose(logits[roi], expected, rtol=1e-4, atol=1e-4)
        along = [plain_sides(x[roi].astype(np.float64), params, axis) for axis in "xy"]
        for name, found in zip(("bucket_logits", "bucket_offsets"), buckets, strict=True):
            (one_x, one_y) = (
                (a @ params[name]["kernel"] + params[name]["bias"])[:, 0] for a in along
            )
            sides = [one_x[:3], one_x[:2:-1], one_y[:3], one_y[:2:-1]]
            np.testing.assert_allclose(found[roi], sides, rtol=1e-3, atol=1e-3)


def test_outputs_of_the_box_head_are_float32_whatever_the_computation_dtype():
    module = sabl.BoxHead(CLASSES, WIDTH, SIDES, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((4, 3, 3, 2), jnp.bfloat16)

    def both(module, x):
        return module.classify(x), module.localise(x)

    outputs, params = jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x, method=both), x
    )
    for leaf in jax.tree.leaves((outputs, params)):
        assert leaf.dtype == jnp.float32
