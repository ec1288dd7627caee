"""Convolution and its gradients against NumPy in float64, XLA and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from detlab.ops import conv as conv_lib

# At stride 2, padding affects even and odd sizes differently: both occur in both directions.
CASES = [
    (kernel_size, stride, size)
    for kernel_size in (1, 3, 7)
    for stride, size in ((1, (8, 9)), (2, (8, 9)), (2, (9, 8)))
]
# Sums of up to 2 * 9 * 9 float32 products of order one: values and gradients differ by rounding.
CLOSE = dict(rtol=2e-5, atol=2e-5)


@pytest.fixture(autouse=True)
def every_form_for_cpus(monkeypatch):
    """The tests' convolutions are too small for these forms, which they compare with XLA's."""
    monkeypatch.setattr(conv_lib, "_forms", lambda *shapes: conv_lib._Forms(True, True, True, True))


def inputs(kernel_size, size, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, *size, 3))
    kernel = rng.standard_normal((kernel_size, kernel_size, 3, 4)) / kernel_size
    return x.astype(dtype), kernel.astype(dtype)


def cotangent(kernel_size, stride, size, dtype=np.float32):
    out = [(s - 1) // stride + 1 for s in size]  # sizes with padding (k - 1) // 2 and odd k
    return np.random.default_rng(1).standard_normal((2, *out, 4)).astype(dtype)


def slow_conv(x, kernel, stride):
    """A loop over output cells, in float64, with zero padding of (k - 1) // 2 on all sides."""
    k = kernel.shape[0]
    pad = (k - 1) // 2
    x = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height = (x.shape[1] - k) // stride + 1
    width = (x.shape[2] - k) // stride + 1
    out = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, i, j] = np.tensordot(window, kernel.astype(np.float64), 3)
    return out


def slow_gradients(x, kernel, stride, dy):
    """The gradients of `slow_conv`, summed over output cells."""
    k = kernel.shape[0]
    pad = (k - 1) // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    dx, dk = np.zeros_like(padded), np.zeros(kernel.shape)
    for i in range(dy.shape[1]):
        for j in range(dy.shape[2]):
            rows = slice(i * stride, i * stride + k)
            columns = slice(j * stride, j * stride + k)
            dx[:, rows, columns] += np.einsum("bd,ijcd->bijc", dy[:, i, j], kernel)
            dk += np.einsum("bijc,bd->ijcd", padded[:, rows, columns], dy[:, i, j])
    return dx[:, pad : pad + x.shape[1], pad : pad + x.shape[2]], dk


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradients(function, stride, x, kernel, dy):
    out, vjp = jax.vjp(lambda x, kernel: function(x, kernel, stride), x, kernel)
    return out, *vjp(dy)


def native(x, kernel, stride):
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.mark.parametrize("kernel_size, stride, size", CASES)
def test_value_and_both_gradients_equal_numpy_and_xla(kernel_size, stride, size):
    x, kernel = inputs(kernel_size, size)
    dy = cotangent(kernel_size, stride, size)
    ours = value_and_gradients(conv_lib.conv, stride, x, kernel, dy)
    xlas = value_and_gradients(native, stride, x, kernel, dy)
    slow = slow_conv(x, kernel, stride), *slow_gradients(x, kernel, stride, dy)
    for a, b, c in zip(ours, xlas, slow):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, c, **CLOSE)
        np.testing.assert_allclose(a, b, **CLOSE)


@pytest.mark.parametrize("kernel_size, stride", [(1, 2), (3, 1), (3, 2), (7, 2)])
def test_gradients_equal_finite_differences_in_float64(kernel_size, stride):
    with jax.enable_x64(True):
        x, kernel = inputs(kernel_size, (6, 7), np.float64)
        dx, dk = inputs(kernel_size, (6, 7), np.float64, seed=2)

        @jax.jit
        def loss(x, kernel):
            return jnp.sin(conv_lib.conv(x, kernel, stride)).sum()

        gradients = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
        assert all(g.dtype == jnp.float64 for g in gradients)
        # Central differences have errors of step^2 times third derivatives, and of 1e-16 / step.
        step = 1e-5
        along_x = (loss(x + step * dx, kernel) - loss(x - step * dx, kernel)) / (2 * step)
        along_k = (loss(x, kernel + step * dk) - loss(x, kernel - step * dk)) / (2 * step)
        np.testing.assert_allclose(np.vdot(gradients[0], dx), along_x, rtol=1e-7)
        np.testing.assert_allclose(np.vdot(gradients[1], dk), along_k, rtol=1e-7)


def test_stride_2_pads_even_sizes_on_both_sides_unlike_same():
    image = np.arange(1.0, 17.0, dtype=np.float32).reshape(1, 4, 4, 1)
    ones = np.ones((3, 3, 1, 1), np.float32)
    # Windows start at -1 and 1: they cover rows (0, 1) and (1, 2, 3), and the same columns.
    expected = [[14.0, 30.0], [57.0, 99.0]]
    np.testing.assert_array_equal(conv_lib.conv(image, ones, 2)[0, :, :, 0], expected)
    explicit = conv_lib.conv(image, ones, 2, ((1, 1), (1, 1)))
    np.testing.assert_array_equal(explicit[0, :, :, 0], expected)
    same = lax.conv_general_dilated(
        image, ones, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert not np.array_equal(same[0, :, :, 0], expected)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_padding_may_differ_on_each_side(kernel_size):
    x, kernel = inputs(kernel_size, (5, 6))
    padding = ((0, 2), (1, 0))
    out = conv_lib.conv(x, kernel, 2, padding)
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    np.testing.assert_allclose(out, conv_lib.conv(padded, kernel, 2, ((0, 0), (0, 0))), **CLOSE)
    height, width = 5 + 2 - kernel_size, 6 + 1 - kernel_size
    assert out.shape == (2, height // 2 + 1, width // 2 + 1, 4)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 2), (1, 0)), ((3, 0), (0, 3))])
def test_the_forms_for_cpus_equal_xlas_convolution(stride, padding):
    x, kernel = inputs(3, (8, 9))
    native = functools.partial(conv_lib._native, stride, padding)
    out, vjp = jax.vjp(native, x, kernel)
    for form in (conv_lib._by_rows, conv_lib._with_fourth_channel):
        np.testing.assert_allclose(form(stride, padding, x, kernel), out, **CLOSE)
    dy = np.random.default_rng(3).standard_normal(out.shape).astype(np.float32)
    forms = conv_lib._Forms(True, True, True, True)
    found = conv_lib._gradients(forms, stride, padding, x, kernel, dy)
    for ours, xlas in zip(found, vjp(dy)):
        np.testing.assert_allclose(ours, xlas, **CLOSE)


def operations(function, platform, *arguments):
    """Counts (products, convolutions) in the program that a platform's compiler receives."""
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    return tuple(text.count(f"stablehlo.{name}") for name in ("dot_general", "convolution"))


# Convolution, kernel size, products on a CPU: forward, and in both gradients.
FORMS = {"1x1": (conv_lib.conv, 1, 1, 2), "3x3": (conv_lib.conv, 3, 3, 2)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_cpu_gets_products_and_every_other_platform_its_own_convolutions(form, stride):
    function, kernel_size, forward_products, gradient_products = FORMS[form]
    x, kernel = inputs(kernel_size, (8, 8))
    forward = functools.partial(function, stride=stride)

    def backward(x, kernel, dy):
        return jax.vjp(forward, x, kernel)[1](dy)

    dy = cotangent(kernel_size, stride, (8, 8))
    assert operations(forward, "cpu", x, kernel)[0] == forward_products
    assert operations(backward, "cpu", x, kernel, dy)[0] >= gradient_products
    for platform in ("cuda", "tpu"):
        assert operations(forward, platform, x, kernel) == (0, 1)
        products, convolutions = operations(backward, platform, x, kernel, dy)
        assert products == 0 and convolutions >= 2


def test_a_depthwise_convolution_is_one_only_where_the_platform_has_a_fast_one():
    x, kernel = np.ones((1, 6, 6, 4), np.float32), np.ones((3, 3, 1, 4), np.float32)

    def gradients(x, kernel):
        return jax.grad(lambda *a: conv_lib.depthwise(*a).sum(), (0, 1))(x, kernel)

    for function in (conv_lib.depthwise, gradients):
        assert operations(function, "cpu", x, kernel) == (0, 0)
        for platform in ("cuda", "tpu"):
            products, convolutions = operations(function, platform, x, kernel)
            assert products == 0 and convolutions >= 1


FORMS_BY_RULE = [  # shapes, stride, the forms that are used
    ((2, 2, 2, 4), (3, 3, 4, 8), 1, {"rows", "input_gradient"}),
    ((2, 9, 9, 3), (6, 6, 3, 24), 2, {"fourth_channel", "input_gradient"}),
    ((1, 9, 9, 64), (3, 3, 64, 72), 2, {"kernel_gradient"}),
    ((1, 4, 4, 128), (3, 3, 128, 128), 1, {"kernel_gradient", "input_gradient"}),
]


@pytest.mark.parametrize("x_shape, kernel_shape, stride, used", FORMS_BY_RULE)
def test_each_form_alone_equals_xla(monkeypatch, x_shape, kernel_shape, stride, used):
    monkeypatch.undo()
    padding = tuple(((k - 1) // 2,) * 2 for k in kernel_shape[:2])
    forms = conv_lib._forms(x_shape, kernel_shape, stride, padding)
    assert {name for name, chosen in forms._asdict().items() if chosen} == used
    rng = np.random.default_rng(0)
    x = rng.standard_normal(x_shape, np.float32)
    kernel = rng.standard_normal(kernel_shape, np.float32) / np.float32(np.prod(kernel_shape[:3]))
    xla = functools.partial(conv_lib._native, stride, padding)
    dy = rng.standard_normal(jax.eval_shape(xla, x, kernel).shape, np.float32)
    ours = value_and_gradients(conv_lib.conv, stride, x, kernel, dy)
    expected, vjp = jax.vjp(xla, x, kernel)
    for a, b in zip(ours, (expected, *vjp(dy))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_an_empty_result_and_half_precision_are_left_to_xla(monkeypatch):
    monkeypatch.undo()
    inside = ((0, 0), (0, 0))
    assert not any(conv_lib._forms((1, 2, 2, 1), (3, 3, 1, 1), 2, inside))
    assert conv_lib.conv(np.ones((1, 2, 2, 1)), np.ones((3, 3, 1, 1)), 2, inside).size == 0
    x, kernel = jnp.ones((1, 2, 2, 4), jnp.bfloat16), jnp.ones((3, 3, 4, 4), jnp.bfloat16)
    assert operations(conv_lib.conv, "cpu", x, kernel) == (0, 1)


# Shapes of detectors and the forms of a CPU: rows, fourth channel, gradients of kernel and input.
CHOICES = [
    ((1, 2, 2, 256), (3, 3, 256, 256), 1, (True, False, True, True)),  # fewer cells than the kernel
    ((1, 3, 3, 64), (3, 3, 64, 64), 1, (False, False, False, False)),
    ((1, 10, 10, 512), (3, 3, 512, 512), 1, (False, False, True, True)),
    ((1, 40, 40, 256), (3, 3, 256, 256), 1, (False, False, True, False)),
    ((1, 40, 40, 128), (3, 3, 128, 128), 1, (False, False, False, False)),
    ((1, 80, 80, 48), (3, 3, 48, 48), 1, (False, False, True, False)),
    ((8, 32, 32, 64), (3, 3, 64, 64), 1, (False, False, False, False)),
    ((1, 160, 160, 48), (3, 3, 48, 96), 2, (False, False, True, False)),
    ((1, 80, 80, 32), (3, 3, 32, 64), 2, (False, False, False, False)),
    ((1, 320, 320, 3), (6, 6, 3, 48), 2, (False, False, True, False)),
    ((8, 128, 128, 3), (7, 7, 3, 32), 2, (False, True, False, False)),
    ((1, 320, 320, 3), (6, 6, 3, 16), 2, (False, False, False, False)),
    ((1, 320, 320, 3), (6, 6, 3, 80), 2, (False, True, True, False)),
    ((1, 10, 10, 128), (3, 3, 128, 128), 1, (False, False, True, True)),
    ((1, 20, 20, 512), (3, 3, 512, 512), 1, (False, False, True, True)),
]


@pytest.mark.parametrize("x_shape, kernel_shape, stride, expected", CHOICES)
def test_the_shapes_choose_the_forms(monkeypatch, x_shape, kernel_shape, stride, expected):
    monkeypatch.undo()
    padding = tuple(((k - 1) // 2,) * 2 for k in kernel_shape[:2])
    assert conv_lib._forms(x_shape, kernel_shape, stride, padding) == expected


def test_dtype_of_the_inputs_is_kept():
    for kernel_size in (1, 3, 7):
        x, kernel = inputs(kernel_size, (6, 6), jnp.bfloat16)
        dy = cotangent(kernel_size, 2, (6, 6), jnp.bfloat16)
        results = value_and_gradients(conv_lib.conv, 2, x, kernel, dy)
        assert all(r.dtype == jnp.bfloat16 for r in results)


def test_input_that_does_not_fit_the_kernel_is_refused():
    kernel = np.zeros((3, 3, 4, 8), np.float32)
    with pytest.raises(ValueError, match=r"\[B, H, W, 4\].*\(1, 6, 6, 3\)"):
        conv_lib.conv(np.zeros((1, 6, 6, 3), np.float32), kernel)
    with pytest.raises(ValueError, match=r"\[B, H, W, 4\].*\(6, 6, 4\)"):
        conv_lib.conv(np.zeros((6, 6, 4), np.float32), kernel)


@pytest.mark.parametrize("stride, padding", [(1, None), (2, None), (2, ((0, 1), (0, 1)))])
def test_depthwise_equals_xlas_grouped_convolution_and_its_gradients(stride, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 9, 5)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 1, 5)).astype(np.float32)

    def grouped(x, kernel):
        around = ((1, 1), (1, 1)) if padding is None else padding
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            around,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=5,
        )

    def own(x, kernel):
        return conv_lib.depthwise(x, kernel, stride, padding)

    expected, expected_grads = jax.vjp(grouped, x, kernel)
    found, grads = jax.vjp(own, x, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    change = rng.normal(size=expected.shape).astype(np.float32)
    for a, b in zip(grads(change), expected_grads(change)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    with pytest.raises(
        ValueError,
        match=r"depthwise needs x \[B, H, W, 4\].*, not \(2, 7, 9, 5\) and \(3, 3, 1, 4\)",
    ):
        conv_lib.depthwise(x, kernel[..., :4])


@pytest.mark.parametrize("stride, size", [(1, (14, 15)), (2, (15, 14)), (1, (3, 2))])
def test_a_dilated_kernel_equals_one_with_zeros_between_its_cells(stride, size):
    x, kernel = inputs(3, size)
    wide = np.zeros((7, 7, 3, 4), np.float32)
    wide[::3, ::3] = kernel
    found = conv_lib.conv(x, kernel, stride, dilation=3)
    np.testing.assert_allclose(found, slow_conv(x, wide, stride), **CLOSE)
