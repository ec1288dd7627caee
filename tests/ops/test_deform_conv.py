"""Deformable convolution: both programs against loops, the reference and plain convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import lax

from detlab import sharding
from detlab.ops import deform_conv as deform_conv_lib

SEED = 0
PROGRAMS = ("rows", "taps")
# Sums of up to 4 * 9 float32 products of order one.
CLOSE = dict(rtol=2e-5, atol=2e-5)


@pytest.fixture(params=[PROGRAMS[0], pytest.param(PROGRAMS[1], marks=pytest.mark.slow)])
def program(request, monkeypatch):
    """Each test runs the program for CPUs and the one for all other platforms."""
    branch = "cpu" if request.param == "rows" else "default"
    monkeypatch.setattr(
        deform_conv_lib.lax, "platform_dependent", lambda *args, **programs: programs[branch](*args)
    )
    return request.param


def inputs(size=(6, 7), stride=1, groups=1, deform_groups=1, dtype=np.float32, seed=SEED):
    """x, offsets, kernel and mask of a 3x3 convolution with padding 1; many samples miss x."""
    rng = np.random.default_rng(seed)
    height, width = ((s - 1) // stride + 1 for s in size)
    x = rng.standard_normal((*size, 4))
    offsets = rng.normal(0, 2, (height, width, deform_groups * 18))
    kernel = rng.standard_normal((3, 3, 4 // groups, 6)) / 3
    mask = rng.uniform(0, 1, (height, width, deform_groups * 9))
    return tuple(v.astype(dtype) for v in (x, offsets, kernel, mask))


def slow_deform_conv(x, offsets, kernel, mask, stride=1, padding=1, dilation=1, groups=1, dg=1):
    """A loop over output cells, taps and corners in float64."""
    x, offsets, kernel, mask = (np.asarray(v, np.float64) for v in (x, offsets, kernel, mask))
    height, width, cin = x.shape
    kh, kw, _, cout = kernel.shape
    out = np.zeros((*offsets.shape[:2], cout))
    for i, j, ki, kj in np.ndindex(*offsets.shape[:2], kh, kw):
        sampled = np.zeros(cin)
        for e in range(dg):
            tap = (e * kh + ki) * kw + kj
            y = i * stride - padding + ki * dilation + offsets[i, j, 2 * tap]
            z = j * stride - padding + kj * dilation + offsets[i, j, 2 * tap + 1]
            channels = slice(e * cin // dg, (e + 1) * cin // dg)
            for row in (int(np.floor(y)), int(np.floor(y)) + 1):
                for column in (int(np.floor(z)), int(np.floor(z)) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        weight = (1 - abs(y - row)) * (1 - abs(z - column)) * mask[i, j, tap]
                        sampled[channels] += weight * x[row, column, channels]
        for q in range(groups):
            ins = slice(q * cin // groups, (q + 1) * cin // groups)
            outs = slice(q * cout // groups, (q + 1) * cout // groups)
            out[i, j, outs] += sampled[ins] @ kernel[ki, kj, :, outs]
    return out


def test_a_whole_offset_reads_the_neighbour_and_a_half_one_their_mean(program):
    x = jnp.arange(9.0).reshape(3, 3, 1)
    one = jnp.ones((1, 1, 1, 1))

    def run(dy, dx):
        offsets = jnp.broadcast_to(jnp.array([dy, dx]), (3, 3, 2))
        return deform_conv_lib.deform_conv(x, offsets, one, padding=0)[..., 0]

    np.testing.assert_allclose(run(1.0, 0.0), [[3, 4, 5], [6, 7, 8], [0, 0, 0]])
    np.testing.assert_allclose(run(0.0, 1.0), [[1, 2, 0], [4, 5, 0], [7, 8, 0]])
    np.testing.assert_allclose(run(0.0, 0.5), [[0.5, 1.5, 1], [3.5, 4.5, 2.5], [6.5, 7.5, 4]])
    np.testing.assert_allclose(run(-0.5, 0.0), [[0, 0.5, 1], [1.5, 2.5, 3.5], [4.5, 5.5, 6.5]])


@pytest.mark.parametrize(
    "stride, dilation, groups, deform_groups",
    [(1, 1, 1, 1), (2, 1, 2, 1), (1, 2, 1, 2), (1, 1, 2, 4)],
)
def test_values_equal_a_numpy_loop(program, stride, dilation, groups, deform_groups):
    x, offsets, kernel, mask = inputs((6, 7), stride, groups, deform_groups)
    run = jax.jit(
        functools.partial(
            deform_conv_lib.deform_conv,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            groups=groups,
            deform_groups=deform_groups,
        )
    )
    options = (stride, dilation, dilation, groups, deform_groups)
    for weights in (None, mask):
        ones = np.ones_like(mask) if weights is None else weights
        expected = slow_deform_conv(x, offsets, kernel, ones, *options)
        np.testing.assert_allclose(run(x, offsets, kernel, weights), expected, **CLOSE)


CASES = ["s1_d1_g1_dg1_k3", "s2_d1_g1_dg2_k3", "s1_d2_g1_dg1_k3", "s1_d1_g2_dg2_k3"]
CASES += ["s2_d2_g2_dg4_k3", "s1_d1_g1_dg1_k1"]


@pytest.mark.parametrize("version", ["deform_conv", "modulated_deform_conv"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_equal_the_reference(unit_cases, program, version, name):
    case, arrays = unit_cases("ops")[f"{version}_{name}"]
    names = ["x", "offset", "weight"] + ["mask"] * ("mask" in arrays)

    def ours(values, name):
        order = (2, 3, 1, 0) if name == "weight" else (0, 2, 3, 1)
        return jnp.asarray(values.transpose(order))

    def run(x, offsets, kernel, *mask):
        one = functools.partial(deform_conv_lib.deform_conv, **case["args"])
        axes = (0, 0, None) + (0,) * len(mask)
        return jax.vmap(one, axes)(x, offsets, kernel, *mask)

    out, vjp = jax.vjp(jax.jit(run), *(ours(arrays[n], n) for n in names))
    expected = ours(arrays["out"], "out") - arrays.get("bias", 0)
    np.testing.assert_allclose(out, expected, **case["tolerance"])
    for n, gradient in zip(names, vjp(ours(arrays["cot_out"], "out"))):
        expected = ours(arrays[f"grad_{n}"], n)
        np.testing.assert_allclose(gradient, expected, err_msg=n, **case["tolerance"])


@pytest.mark.parametrize("groups, deform_groups", [(1, 1), (2, 4)])
def test_without_offsets_it_is_a_convolution_in_value_and_gradient(program, groups, deform_groups):
    x, offsets, kernel, mask = inputs((6, 7), 2, groups, deform_groups)
    dy = np.random.default_rng(1).standard_normal((3, 4, 6)).astype(np.float32)

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x[None],
            kernel,
            (2, 2),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )[0]

    def deformable(x, kernel):
        ones = jnp.ones_like(mask)
        zeros = jnp.zeros_like(offsets)
        return deform_conv_lib.deform_conv(
            x, zeros, kernel, ones, 2, groups=groups, deform_groups=deform_groups
        )

    (a, vjp_a), (b, vjp_b) = jax.vjp(plain, x, kernel), jax.vjp(jax.jit(deformable), x, kernel)
    np.testing.assert_allclose(b, a, **CLOSE)
    for expected, gradient in zip(vjp_a(dy), vjp_b(dy)):
        np.testing.assert_allclose(gradient, expected, **CLOSE)


def test_the_same_whole_offset_everywhere_moves_the_result(program):
    x, offsets, kernel, _ = inputs((9, 9))
    x[:3], x[-3:], x[:, :3], x[:, -3:] = 0, 0, 0, 0
    run = jax.jit(lambda *arrays: deform_conv_lib.deform_conv(*arrays))  # traced again
    still = run(x, np.zeros_like(offsets), kernel)
    moved = run(x, np.broadcast_to(np.float32([1, -1] * 9), offsets.shape), kernel)
    np.testing.assert_allclose(moved[:-1, 1:], still[1:, :-1], **CLOSE)


def test_a_mask_of_zeros_gives_0_and_still_a_gradient_to_the_mask(program):
    x, offsets, kernel, mask = inputs()

    def total(x, offsets, kernel, mask):
        return deform_conv_lib.deform_conv(x, offsets, kernel, mask).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))(
        x, offsets, kernel, np.zeros_like(mask)
    )
    assert value == 0
    for gradient in gradients[:3]:
        np.testing.assert_array_equal(gradient, 0)
    assert np.abs(gradients[3]).max() > 0.1


def test_samples_far_outside_or_of_no_number_are_0_without_gradient(program):
    x, offsets, kernel, _ = inputs((4, 5))
    run = jax.jit(jax.value_and_grad(lambda *a: deform_conv_lib.deform_conv(*a).sum(), (0, 1)))
    # -1 and the size itself are the first positions that count as outside.
    for far in (1e30, -1e30, np.inf, np.nan):
        value, gradients = run(x, np.full_like(offsets, far), kernel)
        assert value == 0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)
    one = np.ones((1, 1, 4, 1), np.float32)
    edge = jax.grad(lambda o: deform_conv_lib.deform_conv(x, o, one, padding=0).sum())
    for axis, size in enumerate(x.shape[:2]):
        cells = np.indices(x.shape[:2])[axis]
        for border in (-1, size):
            offsets = np.zeros((4, 5, 2), np.float32)
            offsets[..., axis] = border - cells
            np.testing.assert_array_equal(edge(jnp.asarray(offsets)), 0)


@pytest.mark.parametrize("groups, deform_groups", [(1, 1), (2, 2)])
def test_gradients_equal_finite_differences_in_float64(program, groups, deform_groups):
    with jax.enable_x64(True):
        arrays = inputs((4, 5), 1, groups, deform_groups, np.float64)
        # Away from the lines between cells, where the derivative by the offset jumps.
        offsets = np.floor(arrays[1]) + np.clip(arrays[1] % 1, 0.01, 0.99)
        arrays = (arrays[0], offsets, *arrays[2:])
        along = inputs((4, 5), 1, groups, deform_groups, np.float64, seed=5)

        @jax.jit
        def loss(*arrays):
            out = deform_conv_lib.deform_conv(*arrays, 1, 1, 1, groups, deform_groups)
            return jnp.sin(out).sum()

        gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*arrays)
        # Central differences: error of order step^2 times third derivatives, and of 1e-16 / step.
        step = 1e-5
        for i, (gradient, direction) in enumerate(zip(gradients, along)):
            assert gradient.dtype == jnp.float64
            moved = [
                loss(*arrays[:i], arrays[i] + s * direction, *arrays[i + 1 :])
                for s in (step, -step)
            ]
            numeric = (moved[0] - moved[1]) / (2 * step)
            np.testing.assert_allclose(np.vdot(gradient, direction), numeric, rtol=1e-7)


def test_a_batch_equals_its_images_also_inside_shard_map(program):
    images = [inputs(seed=i) for i in range(3)]
    x, offsets, mask = (np.stack([image[i] for image in images]) for i in (0, 1, 3))
    kernel = images[0][2]
    dy = np.random.default_rng(1).standard_normal((3, 6, 7, 6)).astype(np.float32)

    def one(kernel, x, offsets, mask, dy):
        out, vjp = jax.vjp(deform_conv_lib.deform_conv, x, offsets, kernel, mask)
        return out, vjp(dy)

    batched = jax.vmap(one, (None, 0, 0, 0, 0))
    together = jax.jit(batched)(kernel, x, offsets, mask, dy)
    for i in range(3):
        alone = jax.jit(one)(kernel, x[i], offsets[i], mask[i], dy[i])
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone)):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)
    mesh = jax.make_mesh(
        (1,), (sharding.AXIS,), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1]
    )
    mapped = jax.jit(sharding.per_image(batched, mesh, constants=1))(kernel, x, offsets, mask, dy)
    for a, b in zip(jax.tree.leaves(mapped), jax.tree.leaves(together)):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_the_levels_of_a_pyramid_equal_each_alone_in_value_and_gradient(program):
    sizes = [(6, 7), (2, 0), (3, 4)]  # 42 + 12 cells do not fill rows of 7
    levels = [inputs(size, deform_groups=2, seed=i) for i, size in enumerate(sizes)]
    maps, offsets, kernels, masks = zip(*levels)

    def alone(maps, offsets, kernel, masks):
        one = functools.partial(deform_conv_lib.deform_conv, deform_groups=2)
        return tuple(one(x, o, kernel, m) for x, o, m in zip(maps, offsets, masks))

    def together(*arrays):
        return deform_conv_lib.deform_conv_levels(*arrays, deform_groups=2)

    dy = tuple(np.float32(np.cos(np.indices((*size, 6)).sum(0))) for size in sizes)

    def value_and_gradients(function):
        def run(*arrays):
            out, vjp = jax.vjp(function, *arrays)
            return out, vjp(dy)

        return tiny.jit(run)(maps, offsets, kernels[0], masks)

    expected, found = value_and_gradients(alone), value_and_gradients(together)
    assert [x.shape for x in found[0]] == [(*size, 6) for size in sizes]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_an_empty_result_has_no_cells():
    x, _, kernel, _ = inputs()
    out = deform_conv_lib.deform_conv(x[:0], np.zeros((0, 7, 18), np.float32), kernel)
    assert out.shape == (0, 7, 6)


def test_bfloat16_is_summed_in_float32(program):
    arrays = [jnp.asarray(v, jnp.bfloat16) for v in inputs()]
    out, vjp = jax.vjp(jax.jit(lambda *a: deform_conv_lib.deform_conv(*a)), *arrays)
    assert out.dtype == jnp.bfloat16
    assert all(g.dtype == jnp.bfloat16 for g in vjp(out))
    exact = slow_deform_conv(*(np.asarray(v, np.float64) for v in arrays))
    # Samples are rounded to 2^-9 before 36 products of order 0.3, and the sum is rounded too.
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8, atol=0.02)


def test_the_matrix_of_all_samples_is_never_made():
    """32x32 cells with 64 channels: all samples would be 2.4 MB, those of a row are 74 kB."""
    cells, depth = 32 * 32, 64
    x = jax.ShapeDtypeStruct((32, 32, depth), jnp.float32)
    offsets = jax.ShapeDtypeStruct((32, 32, 18), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, depth, depth), jnp.float32)

    def gradients(x, offsets, kernel):
        out, vjp = jax.vjp(deform_conv_lib.deform_conv, x, offsets, kernel)
        return vjp(out)

    memory = jax.jit(gradients).lower(x, offsets, kernel).compile().memory_analysis()
    maps = 4 * cells * depth * 4  # the padded map and its gradient, the result and its rows
    indices = 12 * cells * 9 * 4 * 4  # index and weight of all samples, and their derivatives
    rows = 3 * 32 * 9 * depth * 4 + 3 * 9 * depth * depth * 4
    assert memory.temp_size_in_bytes < maps + indices + rows


def test_each_platform_is_given_its_own_program():
    def total(x, offsets, kernel):
        return deform_conv_lib.deform_conv(x, offsets, kernel).sum()

    gradient = jax.jit(jax.grad(total))
    for platform, scatters in (("cpu", 0), ("cuda", 4)):
        lowered = gradient.trace(*inputs()[:3]).lower(lowering_platforms=(platform,))
        assert lowered.as_text().count('"stablehlo.scatter"') == scatters


def test_bad_arguments_raise():
    x, offsets, kernel, mask = inputs()
    with pytest.raises(ValueError, match=r"\(6, 7, 4\).*groups 2"):
        deform_conv_lib.deform_conv(x, offsets, kernel, groups=2)
    with pytest.raises(ValueError, match="deform_groups 3"):
        deform_conv_lib.deform_conv(x, offsets, kernel, deform_groups=3)
    with pytest.raises(ValueError, match=r"offsets must be \(6, 7, 18\), not \(6, 7, 9\)"):
        deform_conv_lib.deform_conv(x, mask, kernel)
    with pytest.raises(ValueError, match=r"mask must be \(6, 7, 9\)"):
        deform_conv_lib.deform_conv(x, offsets, kernel, offsets)
    with pytest.raises(ValueError, match="one entry per level, but have 2, 1 and 2"):
        deform_conv_lib.deform_conv_levels((x, x), (offsets,), kernel)
