"""The convolution against XLA's own, forward and backward, at every layer's shape."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import parity
import pytest
from jax import export, lax
from jax.test_util import check_grads

from eqxunet.ops import conv2d, conv2d_transpose
from eqxunet.ops.kernels import KERNELS, is_native

# (h, w, c_in, c_out) of the 3x3 layers at 128x128, and odd ones.
LAYERS = [
    (128, 128, 3, 32),
    (128, 128, 32, 32),
    (64, 64, 32, 64),
    (32, 32, 128, 128),
    (16, 16, 256, 256),
    (128, 128, 64, 32),
    (8, 8, 512, 256),
    (97, 130, 16, 16),
    (1, 1, 4, 4),
    (7, 1, 2, 3),
]


def stock(x, kernel, stride=1, padding="SAME"):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


def ours(x, kernel, **options):
    return jax.vmap(lambda example: conv2d(example, kernel, **options))(x)


def arrays(h, w, c_in, c_out, batch=2, size=3, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, h, w, c_in), dtype)
    kernel = jax.random.normal(keys[1], (size, size, c_in, c_out), dtype) / (size * c_in**0.5)
    return x, kernel, jax.random.normal(keys[2], (batch, h, w, c_out), dtype)


def forward_and_gradients(conv):
    def run(x, kernel, g):
        out, pull = jax.vjp(conv, x, kernel)
        return out, *pull(g[:, : out.shape[1], : out.shape[2]])

    return jax.jit(run)


def compare(got, want):
    for name, tolerance, a, b in zip(
        ("output", "gradient of x", "gradient of the kernel"), (1e-5, 1e-4, 1e-4), got, want,
        strict=True,
    ):  # fmt: skip
        parity.assert_close(a, b, tolerance, name)


@pytest.mark.parametrize("shape", LAYERS)
@pytest.mark.parametrize("batch", [1, 3])
def test_layers(shape, batch):
    inputs = arrays(*shape, batch=batch)
    compare(forward_and_gradients(ours)(*inputs), forward_and_gradients(stock)(*inputs))


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (3, {"stride": 2}),
        (1, {"stride": 2}),
        (1, {}),
        (7, {"stride": 2, "padding": ((3, 3), (3, 3))}),
    ],
)
def test_other_kernels_and_strides(size, options):
    inputs = arrays(18, 21, 4, 6, size=size)

    def other(x, kernel):
        return stock(x, kernel, **options)

    def mine(x, kernel):
        return ours(x, kernel, **options)

    compare(forward_and_gradients(mine)(*inputs), forward_and_gradients(other)(*inputs))


@pytest.mark.parametrize(
    ("h", "w", "c_in", "c_out"), [(8, 8, 256, 128), (9, 13, 6, 5), (2, 3, 4, 2)]
)
def test_transposed(h, w, c_in, c_out):
    x, _, _ = arrays(h, w, c_in, c_out)
    keys = jax.random.split(jax.random.key(2), 2)
    kernel = jax.random.normal(keys[0], (2, 2, c_in, c_out)) / c_in**0.5
    g = jax.random.normal(keys[1], (2, 2 * h, 2 * w, c_out))

    def mine(x, kernel):
        return jax.vmap(lambda example: conv2d_transpose(example, kernel))(x)

    def other(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=numbers)

    compare(forward_and_gradients(mine)(x, kernel, g), forward_and_gradients(other)(x, kernel, g))


@pytest.mark.parametrize("padding", [((2, 1), (0, 2)), ((4, 4), (5, 5)), ((-1, -1), (-2, 0))])
def test_any_padding(padding):
    """More than a kernel overlaps, or less than nothing, is beyond the native kernels."""
    x, kernel, _ = arrays(12, 13, 4, 5)

    def mine(x, kernel):
        return ours(x, kernel, padding=padding)

    def other(x, kernel):
        return stock(x, kernel, padding=padding)

    g = jax.random.normal(jax.random.key(3), other(x, kernel).shape)
    compare(forward_and_gradients(mine)(x, kernel, g), forward_and_gradients(other)(x, kernel, g))


def test_native_kernels_are_used_here():
    """Else the comparisons above would compare XLA with itself."""
    assert is_native()
    text = forward_and_gradients(ours).lower(*arrays(16, 16, 8, 8)).as_text()
    assert all(f"@eqxunet_{name}(" in text for name in KERNELS[:3])


def test_without_native_kernels():
    in_a_process(__name__, "_check_without_native_kernels", EQXUNET_NATIVE="0")


def _check_without_native_kernels():
    assert not is_native()
    assert "eqxunet" not in forward_and_gradients(ours).lower(*arrays(16, 16, 8, 8)).as_text()
    for shape in LAYERS:
        test_layers(shape, 2)
    test_transposed(9, 13, 6, 5)
    test_bfloat16()


def test_one_example_without_vmap_or_jit():
    x, kernel, _ = arrays(9, 11, 4, 6)
    parity.assert_close(conv2d(x[0], kernel), stock(x, kernel)[0], 1e-5)


def test_a_kernel_an_example():
    x, _, _ = arrays(9, 11, 4, 6)
    kernels = jax.random.normal(jax.random.key(1), (2, 3, 3, 4, 6))
    want = jnp.stack([stock(x[i : i + 1], kernels[i])[0] for i in range(2)])
    parity.assert_close(jax.vmap(conv2d)(x, kernels), want, 1e-5)


def test_gradient_of_each_example():
    x, kernel, g = arrays(9, 11, 4, 6)

    def loss(conv):
        return lambda kernel, x, g: jnp.sum(conv(x[None], kernel)[0] * g)

    got, want = (
        jax.vmap(jax.grad(loss(conv)), (None, 0, 0))(kernel, x, g) for conv in (ours, stock)
    )
    parity.assert_close(got, want, 1e-4)


def test_derivatives_of_every_order_and_mode():
    x, kernel, _ = arrays(5, 6, 2, 3)

    def conv(x, kernel):  # check_grads moves NumPy arrays
        return ours(jnp.asarray(x), jnp.asarray(kernel))

    check_grads(conv, (x, kernel), order=2, atol=1e-2, rtol=1e-2)


def test_rematerialised():
    x, kernel, g = arrays(16, 16, 8, 8)
    compare(
        forward_and_gradients(jax.checkpoint(ours))(x, kernel, g),
        forward_and_gradients(stock)(x, kernel, g),
    )


def test_bfloat16():
    x, kernel, g = arrays(16, 16, 8, 8, dtype=jnp.bfloat16)
    got = forward_and_gradients(ours)(x, kernel, g)
    want = forward_and_gradients(stock)(*(a.astype(jnp.float32) for a in (x, kernel, g)))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.bfloat16
        parity.assert_close(a.astype(jnp.float32), b, 1e-2)


def test_float64_is_not_rounded():
    with jax.enable_x64(True):
        x, kernel, _ = arrays(16, 16, 4, 4, dtype=jnp.float64)
        parity.assert_close(ours(x, kernel), stock(x, kernel), 1e-14)


def test_lowers_for_cuda_with_xla_convolutions_only():
    x, kernel, g = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays(16, 16, 8, 8))
    run = forward_and_gradients(ours)
    text = export.export(run, platforms=["cuda"])(x, kernel, g).mlir_module()
    assert text.count("stablehlo.convolution") == 3
    assert "stablehlo.while" not in text and "dot_general" not in text
    assert "eqxunet" not in text.replace("/eqxunet/", "")


def in_a_process(module, name, **environment):
    """Calls a function of a test file in a process of its own, for what is fixed at the start."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    code = f"import {module}; {module}.{name}()"
    environment = os.environ | environment | {"PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
