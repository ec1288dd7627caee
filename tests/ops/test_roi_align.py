"""RoIAlign: both programs against NumPy loops, the reference, limits and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab import sharding
from detlab.ops import roi_align as roi_align_lib

SEED = 0
PROGRAMS = ("loops", "whole")
STRIDES = (4, 8)
# Means of bilinear samples of values of order one.  Float32 positions of up to 50 cells are rounded
# to 4e-6, and a sample changes by about 3 per cell.
CLOSE = dict(rtol=1e-5, atol=3e-5)


@pytest.fixture(params=[PROGRAMS[0], pytest.param(PROGRAMS[1], marks=pytest.mark.slow)])
def program(request, monkeypatch):
    """Each test runs the program for CPUs and the one for all other platforms."""
    choose_program(monkeypatch, request.param)
    return request.param


def choose_program(monkeypatch, name):
    branch = "cpu" if name == "loops" else "default"
    monkeypatch.setattr(
        roi_align_lib.lax, "platform_dependent", lambda *args, **programs: programs[branch](*args)
    )


def jitted(*args, **options):
    """`roi_align` compiled with these arguments; a new function, so that it is traced again."""
    return jax.jit(lambda f, rois: roi_align_lib.roi_align(f, rois, *args, **options))


def slow_roi_align(features, roi, output, scale, ratio, cotangent=None):
    """One RoI, with loops in float64: (pooled, the adjoint applied to `cotangent`)."""
    height, width, depth = features.shape
    features = features.astype(np.float64)
    x1, y1, x2, y2 = np.asarray(roi, np.float64) * scale - 0.5
    bins = np.array([(y2 - y1) / output[0], (x2 - x1) / output[1]])
    counts = [ratio] * 2 if ratio else np.maximum(np.ceil(bins), 0).astype(int)
    out, gradient = np.zeros((*output, depth)), np.zeros(features.shape)
    samples = max(counts[0] * counts[1], 1)
    for i, j, k, m in np.ndindex(*output, *counts):
        y = y1 + bins[0] * (i + (k + 0.5) / counts[0])
        x = x1 + bins[1] * (j + (m + 0.5) / counts[1])
        if not (-1 <= y <= height and -1 <= x <= width):
            continue
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
        for row in {int(y), min(int(y) + 1, height - 1)}:
            for column in {int(x), min(int(x) + 1, width - 1)}:
                weight = (1 - abs(y - row)) * (1 - abs(x - column)) / samples
                out[i, j] += weight * features[row, column]
                if cotangent is not None:
                    gradient[row, column] += weight * cotangent[i, j]
    return out, gradient


def random_rois(count, size, seed):
    """RoIs xyxy px of all sizes; some reach outside the image, one has no area."""
    rng = np.random.default_rng(seed)
    side = np.exp(rng.uniform(np.log(2), np.log(size), (count, 2)))
    low = rng.uniform(-0.2, 1, (count, 2)) * size - side / 2
    side[0] = 0
    return np.concatenate([low, low + side], -1).astype(np.float32)


def random_pyramid(dtype=np.float32, seed=SEED):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((s, s + 3, 2)).astype(dtype) for s in (24, 12))


def test_a_box_inside_a_5x5_ramp_gives_values_at_bin_centres(program):
    """The ramp is 5 y + x; the first bin's centre is 0.5 + 0.25 cells in both directions.

     0  1  2  3  4
     5  6  7  8  9
    10 11 12 13 14
    """
    ramp = jnp.arange(25.0).reshape(5, 5, 1)
    out = jitted(4, 1.0)(ramp, jnp.array([[1.0, 1, 3, 3]]))
    expected = [[4.5, 5, 5.5, 6], [7, 7.5, 8, 8.5], [9.5, 10, 10.5, 11], [12, 12.5, 13, 13.5]]
    np.testing.assert_allclose(out[0, :, :, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("ratio", [0, 2, 3])
def test_values_and_gradient_equal_a_numpy_loop(program, ratio):
    features = random_pyramid()[0]
    rois = random_rois(20, 110, SEED + ratio)
    rng = np.random.default_rng(SEED)
    dy = rng.standard_normal((20, 3, 4, 2)).astype(np.float32)

    @jax.jit
    def run(features, rois, dy):
        out, vjp = jax.vjp(
            lambda f: roi_align_lib.roi_align(f, rois, (3, 4), 0.25, ratio), features
        )
        return out, *vjp(dy)

    out, gradient = run(features, rois, dy)
    slow = [slow_roi_align(features, r, (3, 4), 0.25, ratio, d) for r, d in zip(rois, dy)]
    np.testing.assert_allclose(out, np.stack([s[0] for s in slow]), **CLOSE)
    np.testing.assert_allclose(gradient, sum(s[1] for s in slow), **CLOSE)


CASES = [f"roi_align_{name}" for name in ("s4_r0_7x7", "s4_r2_7x7", "s4_r2_3x5")]
CASES += [f"roi_align_{name}" for name in ("s16_r0_7x7", "s16_r2_7x7", "empty")]
CASES += ["roi_extractor_7_r0", "roi_extractor_4_r2"]


@pytest.mark.parametrize("name", CASES)
def test_value_gradient_and_level_equal_the_reference(unit_cases, program, name):
    """mmcv lists the RoIs of two images; here each image gets all RoIs, only its own valid."""
    case, arrays = unit_cases("ops")[name]
    args, image, rois = case["args"], arrays["rois"][:, 0].astype(int), arrays["rois"][:, 1:]
    keys = sorted(key for key in arrays if key == "x" or key.startswith("x_"))
    maps = tuple(jnp.asarray(arrays[key].transpose(0, 2, 3, 1)) for key in keys)
    ratio, size = args["sampling_ratio"], args["output_size"]
    size = size if isinstance(size, int) else tuple(size)

    def one(maps, valid):
        if "featmap_strides" in args:
            strides, finest = args["featmap_strides"], args["finest_scale"]
            return roi_align_lib.multilevel(maps, rois, valid, strides, size, ratio, finest)
        out = roi_align_lib.roi_align(maps[0], rois, size, args["spatial_scale"], ratio)
        return jnp.where(valid[:, None, None, None], out, 0)

    mine = jnp.arange(len(maps[0]))[:, None] == image
    out, vjp = jax.vjp(jax.jit(lambda maps: jax.vmap(one)(maps, mine).sum(0)), maps)
    np.testing.assert_allclose(out.transpose(0, 3, 1, 2), arrays["out"], **case["tolerance"])
    (gradients,) = vjp(jnp.asarray(arrays["cot_out"].transpose(0, 2, 3, 1)))
    for key, gradient in zip(keys, gradients):
        expected = arrays[f"grad_{key}"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(gradient, expected, **case["tolerance"])
    if "levels" in arrays:
        found = roi_align_lib.levels(rois, len(maps), args["finest_scale"])
        np.testing.assert_array_equal(found, arrays["levels"])


def test_levels_double_at_112_px_and_its_multiples():
    side = np.array([0.0, 1, 111, 112, 223, 224, 447, 448, 5000])
    rois = jnp.asarray(np.stack([side * 0, side * 0, side, side], -1), jnp.float32)
    np.testing.assert_array_equal(roi_align_lib.levels(rois, 4), [0, 0, 0, 1, 1, 2, 2, 3, 3])
    wide = jnp.array([[0.0, 0, 1344, 9], [5, 5, 1, 1], [5, 5, 1, 9]])  # the last two inverted
    np.testing.assert_array_equal(roi_align_lib.levels(wide, 4), [0, 0, 0])


def test_each_roi_is_pooled_from_its_level(program):
    """Level l of the pyramid holds the constant l + 1."""
    pyramid = tuple(jnp.full((s, s, 1), i + 1.0) for i, s in enumerate((64, 32, 16, 8)))
    side = jnp.array([40.0, 112, 224, 230])[:, None]
    rois = jnp.concatenate([jnp.zeros((4, 2)), side, side], -1)
    valid = jnp.ones(4, bool)
    out = jax.jit(lambda p: roi_align_lib.multilevel(p, rois, valid, (4, 8, 16, 32)))(pyramid)
    np.testing.assert_allclose(out[:, 3, 3, 0], [1, 2, 3, 3], rtol=1e-6)


def test_a_mirrored_image_and_box_give_the_mirrored_result(program):
    features = random_pyramid()[0]
    rois = random_rois(12, 100, SEED + 5)
    width = features.shape[1] * 4
    mirrored = np.stack([width - rois[:, 2], rois[:, 1], width - rois[:, 0], rois[:, 3]], -1)
    pool = jitted(5, 0.25)
    out = pool(jnp.asarray(features), jnp.asarray(rois))
    other = pool(jnp.asarray(features[:, ::-1]), jnp.asarray(mirrored))
    np.testing.assert_allclose(other[:, :, ::-1], out, **CLOSE)


def test_invalid_rois_are_zero_and_change_nothing(program):
    pyramid, rois = random_pyramid(), random_rois(12, 90, SEED + 6)
    bad = np.array([[np.nan] * 4, [-1e30, -1e30, 1e30, 1e30], [np.inf] * 4], np.float32)
    padded = np.concatenate([bad[:1], rois, bad[1:]])
    valid = np.isin(np.arange(15), range(1, 13))

    @jax.jit
    def run(pyramid, rois, valid, dy):
        out, vjp = jax.vjp(
            lambda p: roi_align_lib.multilevel(p, rois, valid, STRIDES, 4, 0), pyramid
        )
        return out, *vjp(dy)

    dy = np.random.default_rng(1).standard_normal((15, 4, 4, 2)).astype(np.float32)
    out, gradients = run(pyramid, padded, valid, dy)
    expected, expected_gradients = run(pyramid, rois, np.ones(12, bool), dy[1:13])
    np.testing.assert_array_equal(out[1:13], expected)
    np.testing.assert_array_equal(out[~valid], 0)
    for a, b in zip(gradients, expected_gradients):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_adaptive_sampling_of_one_sample_a_bin_is_ratio_1_and_no_area_gives_0(program):
    features = jnp.asarray(random_pyramid()[0])
    # Seven bins of 7/8 cells: every position is exact, whichever way it is computed.
    small = jnp.array([[8.0, 9, 32.5, 33.5], [8, 8, 8, 20], [20, 20, 20, 20], [30, 30, 20, 20]])
    adaptive = jitted(7, 0.25, 0)(features, small)
    fixed = jitted(7, 0.25, 1)(features, small)
    np.testing.assert_allclose(adaptive[0], fixed[0], rtol=1e-6)
    np.testing.assert_array_equal(adaptive[1:], 0)


def test_max_samples_bounds_the_samples_of_a_bin(program):
    features = jnp.asarray(random_pyramid()[0])
    rois = jnp.array([[0.0, 0, 100, 90], [0, 0, 3, 3]])
    few = jitted(4, 0.25, 0, max_samples=3)(features, rois)
    np.testing.assert_allclose(few[0], jitted(4, 0.25, 3)(features, rois)[0], rtol=1e-6, atol=1e-6)
    exact = slow_roi_align(np.asarray(features), rois[0], (4, 4), 0.25, 0)[0]
    np.testing.assert_allclose(jitted(4, 0.25, 0)(features, rois)[0], exact, **CLOSE)


@pytest.mark.parametrize("ratio", [0, 2])
def test_a_batch_equals_its_images(program, ratio):
    pyramids = [random_pyramid(seed=i) for i in range(3)]
    rois = np.stack([random_rois(10, 90, SEED + i) for i in range(3)])
    valid = np.random.default_rng(2).uniform(size=(3, 10)) < 0.8
    dy = np.random.default_rng(3).standard_normal((3, 10, 3, 3, 2)).astype(np.float32)

    def one(pyramid, rois, valid, dy):
        out, vjp = jax.vjp(
            lambda p: roi_align_lib.multilevel(p, rois, valid, STRIDES, 3, ratio), pyramid
        )
        return out, vjp(dy)[0]

    batch = jax.tree.map(lambda *x: np.stack(x), *pyramids), rois, valid, dy
    together = jax.jit(jax.vmap(one))(*batch)
    alone = jax.jit(one)
    for i in range(3):
        expected = alone(*jax.tree.map(lambda x: x[i], batch))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(expected)):
            np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-6)
    mesh = jax.make_mesh(
        (1,), (sharding.AXIS,), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1]
    )
    mapped = jax.jit(sharding.per_image(jax.vmap(one), mesh, constants=0))(*batch)
    for a, b in zip(jax.tree.leaves(mapped), jax.tree.leaves(together)):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradients_equal_finite_differences_in_float64_and_rois_have_none(program, ratio):
    with jax.enable_x64(True):
        pyramid = random_pyramid(np.float64)
        along = random_pyramid(np.float64, seed=9)
        rois = random_rois(10, 90, SEED + 7).astype(np.float64)
        valid = np.arange(10) < 8

        @jax.jit
        def loss(pyramid, rois):
            return jnp.sin(roi_align_lib.multilevel(pyramid, rois, valid, STRIDES, 3, ratio)).sum()

        gradients, to_rois = jax.jit(jax.grad(loss, (0, 1)))(pyramid, rois)
        assert all(g.dtype == jnp.float64 for g in gradients)
        np.testing.assert_array_equal(to_rois, 0)
        # Central differences: error of order step^2 times third derivatives, and of 1e-16 / step.
        step = 1e-5
        moved = [jax.tree.map(lambda x, d: x + s * d, pyramid, along) for s in (step, -step)]
        numeric = (loss(moved[0], rois) - loss(moved[1], rois)) / (2 * step)
        ours = sum(np.vdot(g, d) for g, d in zip(gradients, along))
        np.testing.assert_allclose(ours, numeric, rtol=1e-7)


def test_no_rois_give_no_rows_and_no_gradient(program):
    pyramid = random_pyramid()
    none = jnp.zeros((0, 4)), jnp.zeros(0, bool)
    pool = jax.jit(lambda pyramid: roi_align_lib.multilevel(pyramid, *none, STRIDES))
    assert pool(pyramid).shape == (0, 7, 7, 2)
    for gradient in jax.grad(lambda p: pool(p).sum())(pyramid):
        np.testing.assert_array_equal(gradient, 0)


def test_bfloat16_features_are_averaged_in_float32(program):
    features = jnp.asarray(random_pyramid()[0], jnp.bfloat16)
    rois = jnp.asarray(random_rois(6, 90, SEED + 8))
    pool = jitted(7, 0.25)
    out, vjp = jax.vjp(lambda f: pool(f, rois), features)
    assert out.dtype == vjp(out)[0].dtype == jnp.bfloat16
    exact = pool(features.astype(jnp.float32), rois)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("ratio", [0, 2])
def test_a_cpu_keeps_less_than_one_roi_besides_pyramid_and_result(ratio):
    pyramid = tuple(jax.ShapeDtypeStruct((s, s, 64), jnp.float32) for s in (64, 32))
    rois, valid = jax.ShapeDtypeStruct((256, 4), jnp.float32), jax.ShapeDtypeStruct((256,), bool)

    def gradient(pyramid, rois, valid):
        pool = functools.partial(roi_align_lib.multilevel, sampling_ratio=ratio)
        return jax.vjp(lambda p: pool(p, rois, valid, STRIDES), pyramid)[1](
            jnp.ones((256, 7, 7, 64))
        )

    def forward(pyramid, rois, valid):
        return roi_align_lib.multilevel(pyramid, rois, valid, STRIDES, 7, ratio)

    one_roi = 49 * 64 * 4
    small = 256 * 200  # bytes per RoI for geometry and order
    result = 256 * one_roi  # the cotangent of this test
    for function, bound in ((forward, 6 * one_roi), (gradient, result + 6 * one_roi)):
        memory = jax.jit(function).lower(pyramid, rois, valid).compile().memory_analysis()
        assert memory.temp_size_in_bytes < bound + small


def test_each_platform_is_given_its_own_program():
    gradient = jax.jit(jax.grad(lambda f, r: roi_align_lib.roi_align(f, r, 2, 0.25).sum()))
    shapes = jnp.zeros((8, 8, 2)), jnp.zeros((3, 4))
    for platform, scatters, has_loop in (("cpu", 0, True), ("cuda", 16, False)):
        lowered = gradient.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
        assert lowered.count('"stablehlo.scatter"') == scatters  # four samples with four cells each
        assert ("stablehlo.while" in lowered) == has_loop


def test_bad_arguments_raise():
    features, rois = jnp.zeros((4, 4, 2)), jnp.zeros((3, 4))
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        roi_align_lib.roi_align(jnp.zeros((4, 4)), rois, 7, 1.0)
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        roi_align_lib.roi_align(features, jnp.zeros((3, 5)), 7, 1.0)
    with pytest.raises(ValueError, match="sampling_ratio at least 0, not -1"):
        roi_align_lib.roi_align(features, rois, 7, 1.0, -1)
    with pytest.raises(ValueError, match=r"one entry per level of features, 2, not \(4,\)"):
        roi_align_lib.multilevel((features,) * 2, rois, jnp.ones(3, bool), (4,))


def test_a_known_result_is_returned_as_it_is_and_has_the_gradient_of_its_own_rois(program):
    """Features of many RoIs, of which three are taken: as if only these had been pooled."""
    pyramid, rois = random_pyramid(), random_rois(12, 80, SEED)
    valid, taken = np.arange(12) != 5, np.array([7, 5, 1])
    rng = np.random.default_rng(SEED)
    weights = rng.normal(size=(3, 2, 2, 2)).astype(np.float32)

    def pool(pyramid, rows, known=None):
        arrays = pyramid, rois[rows], valid[rows]
        return roi_align_lib.multilevel(*arrays, STRIDES, 2, finest_scale=20, known=known)

    def plain(pyramid):
        return (weights * pool(pyramid, taken)).sum()

    def reused(pyramid):
        features = pool(pyramid, np.arange(12))
        return (weights * pool(pyramid, taken, features[taken])).sum()

    expected, gradient = jax.jit(jax.value_and_grad(plain))(pyramid)
    found, again = jax.jit(jax.value_and_grad(reused))(pyramid)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for a, b in zip(again, gradient, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
