"""Convolution fused with what stands around it, against the composition of plain operations."""

import jax
import jax.numpy as jnp
import parity
import pytest
from jax import lax
from jax.test_util import check_grads
from test_conv import in_a_process

from eqxunet.ops import conv2d_of_relu, relu_of_conv2d

# (h, w, c_in, c_out), of the U-Nets' layers and odd ones.
SHAPES = [(128, 128, 32, 32), (16, 16, 256, 256), (32, 32, 16, 16), (9, 13, 5, 7), (3, 2, 4, 4)]


def conv(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=numbers)[0]


def plain_of_relu(x, scale, offset, kernel):
    return conv(jax.nn.relu(x * scale + offset), kernel)


def plain_relu_of(x, kernel, bias):
    return jax.nn.relu(conv(x, kernel) + bias)


def draw(h, w, c_in, c_out, batch=2):
    keys = jax.random.split(jax.random.key(0), 6)
    return (
        jax.random.normal(keys[0], (batch, h, w, c_in)),
        jax.random.normal(keys[1], (c_in,)),
        jax.random.normal(keys[2], (c_in,)),
        jax.random.normal(keys[3], (3, 3, c_in, c_out)) / (3 * c_in**0.5),
        jax.random.normal(keys[4], (c_out,)),
        jax.random.normal(keys[5], (batch, h, w, c_out)),
    )


def results(function, g, *operands):
    """Output and gradients of a function of one example, over a batch."""
    axes = tuple(0 if operand.ndim == 4 and operand.shape[0] == len(g) else None
                 for operand in operands)  # fmt: skip
    mapped = jax.vmap(function, axes)
    out, pull = jax.jit(lambda *o: jax.vjp(mapped, *o))(*operands)
    return out, *pull(g)


def compare(mine, other, g, *operands):
    got, want = results(mine, g, *operands), results(other, g, *operands)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        name, tolerance = ("output", 1e-5) if i == 0 else (f"gradient {i - 1}", 1e-4)
        parity.assert_close(a, b, tolerance, name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 4])
def test_equal_to_the_composition(shape, batch):
    x, scale, offset, kernel, bias, g = draw(*shape, batch=batch)
    # Away from the bends of the ReLUs, where rounding decides between two derivatives.
    x = jnp.where(jnp.abs(x * scale + offset) < 1e-3, (1 - offset) / scale, x)
    compare(conv2d_of_relu, plain_of_relu, g, x, scale, offset, kernel)
    before_relu = jax.vmap(conv, (0, None))(x, kernel) + bias
    g = jnp.where(jnp.abs(before_relu) < 1e-3, 0, g)
    compare(relu_of_conv2d, plain_relu_of, g, x, kernel, bias)


def test_each_example_with_its_own_scale():
    """As GroupNorm has it."""
    x, _, _, kernel, _, g = draw(16, 16, 8, 8, batch=3)
    scale, offset = jax.random.normal(jax.random.key(1), (2, 3, 8))

    def run(function):
        mapped = jax.vmap(function, (0, 0, 0, None))
        out, pull = jax.vjp(mapped, x, scale, offset, kernel)
        return out, *pull(g)

    for a, b in zip(run(conv2d_of_relu), run(plain_of_relu), strict=True):
        parity.assert_close(a, b, 1e-4, "gradients")


def test_each_example_with_its_own_kernel():
    x, scale, offset, _, _, _ = draw(12, 9, 4, 4, batch=3)
    kernels = jax.random.normal(jax.random.key(1), (3, 3, 3, 4, 4))
    got = jax.vmap(conv2d_of_relu, (0, None, None, 0))(x, scale, offset, kernels)
    want = jax.vmap(plain_of_relu, (0, None, None, 0))(x, scale, offset, kernels)
    parity.assert_close(got, want, 1e-5, "output")


def test_kernel_gradients_of_each_example():
    x, scale, offset, kernel, _, g = draw(12, 9, 4, 4, batch=3)

    def gradient(function, x, g):
        return jax.vjp(lambda kernel: function(x, scale, offset, kernel), kernel)[1](g)[0]

    got, want = (
        jax.vmap(lambda x, g, f=f: gradient(f, x, g))(x, g) for f in (conv2d_of_relu, plain_of_relu)
    )
    parity.assert_close(got, want, 1e-4, "gradients")


@pytest.mark.parametrize("width", [4, 9])  # XLA's convolution, and the native one
def test_second_derivatives(width):
    x, scale, offset, kernel, bias, _ = draw(4, width, 2, 3, batch=1)

    def of_relu(*operands):  # check_grads moves NumPy arrays
        return conv2d_of_relu(*map(jnp.asarray, operands))

    def relu_of(*operands):
        return relu_of_conv2d(*map(jnp.asarray, operands))

    # Away from the bends of the ReLUs, which finite differences would see.
    operands = (x[0], scale, jnp.abs(offset) + 5, kernel)
    check_grads(of_relu, operands, order=2, atol=1e-2, rtol=1e-2)
    check_grads(relu_of, (x[0], kernel, bias + 5), order=2, atol=1e-2, rtol=1e-2)


def test_rematerialised():
    x, scale, offset, kernel, _, g = draw(16, 16, 8, 8)
    compare(jax.checkpoint(conv2d_of_relu), plain_of_relu, g, x, scale, offset, kernel)


def test_bfloat16_is_near():
    x, scale, offset, kernel, _, _ = draw(16, 16, 8, 8)
    kernel = kernel.astype(jnp.bfloat16)
    got = conv2d_of_relu(x[0].astype(jnp.bfloat16), scale, offset, kernel)
    assert got.dtype == jnp.bfloat16
    want = plain_of_relu(x[0], scale, offset, kernel.astype(jnp.float32))
    parity.assert_close(got.astype(jnp.float32), want, 0.05, "output")


def test_without_native_kernels():
    in_a_process(__name__, "_check_without_native_kernels", EQXUNET_NATIVE="0")


def _check_without_native_kernels():
    for shape in SHAPES:
        test_equal_to_the_composition(shape, 2)


def test_native_kernels_are_used():
    x, scale, offset, kernel, bias, _ = draw(16, 16, 8, 8, batch=1)

    def both(kernel):
        return relu_of_conv2d(conv2d_of_relu(x[0], scale, offset, kernel), kernel, bias).sum()

    text = jax.jit(jax.grad(both)).lower(kernel).as_text()
    assert "@eqxunet_conv2d(" in text and "@eqxunet_conv2d_kernel_gradient(" in text
    assert jax.jit(relu_of_conv2d).lower(x[0], kernel, bias).as_text().count("maximum") == 0


def test_not_a_number_stays_one():
    x, scale, offset, kernel, bias, _ = draw(16, 16, 8, 8, batch=1)
    x = x.at[0, 5, 5, 2].set(jnp.nan)
    assert jnp.isnan(conv2d_of_relu(x[0], scale, offset, kernel)[4:7, 4:7]).all()
    assert jnp.isnan(relu_of_conv2d(x[0], kernel, bias)[4:7, 4:7]).all()
