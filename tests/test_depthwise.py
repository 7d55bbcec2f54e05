"""Depthwise convolution against XLA's own, forward and backward."""

import jax
import jax.numpy as jnp
import parity
import pytest
from jax import lax
from jax.test_util import check_grads
from test_conv import compare, forward_and_gradients, in_a_process

from eqxunet.ops import depthwise_conv2d, is_convolution
from eqxunet.ops.kernels import KERNELS, is_native

NATIVE = [name for name in KERNELS if name.startswith("depthwise")]


def stock(x, kernel, stride=1):
    numbers, channels = ("NHWC", "HWIO", "NHWC"), x.shape[-1]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=numbers,
        feature_group_count=channels,
    )  # fmt: skip


def ours(x, kernel, stride=1):
    return jax.vmap(lambda example: depthwise_conv2d(example, kernel, stride=stride))(x)


def arrays(h, w, channels, size, batch=3, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, h, w, channels), dtype)
    kernel = jax.random.normal(keys[1], (size, size, 1, channels), dtype) / size
    return x, kernel, jax.random.normal(keys[2], (batch, h, w, channels), dtype)


@pytest.mark.parametrize("size, stride", [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (2, 2), (4, 3)])
@pytest.mark.parametrize(
    "shape",
    [(11, 14, 48), (33, 20, 32), (4, 4, 112), (1, 3, 16), (11, 14, 19)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_every_kernel_and_stride(shape, size, stride):
    inputs = arrays(*shape, size)

    def mine(x, kernel):
        return ours(x, kernel, stride)

    def other(x, kernel):
        return stock(x, kernel, stride)

    compare(forward_and_gradients(mine)(*inputs), forward_and_gradients(other)(*inputs))


def test_many_images_and_rows_are_summed_in_one_order():
    """More than the partial sums that are held at once; the same bits each time."""
    run = forward_and_gradients(ours)
    inputs = arrays(40, 70, 96, 5, batch=9)
    first, second = run(*inputs), run(*inputs)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    compare(first, forward_and_gradients(stock)(*inputs))


@pytest.mark.parametrize("channels", [16, 3])
def test_second_derivatives(channels):
    x, kernel, _ = arrays(5, 6, channels, 3, batch=1)
    check_grads(jax.jit(lambda x, k: jnp.sin(ours(x, k, 2))), (x, kernel), order=2, rtol=2e-2)


def test_native_kernels_are_used_where_channels_are_whole_vectors():
    assert is_native() and len(NATIVE) == 3
    run = forward_and_gradients(lambda x, kernel: ours(x, kernel, 2))
    text = run.lower(*arrays(8, 9, 32, 3)).as_text()
    assert all(f"@eqxunet_{name}(" in text for name in NATIVE)
    assert "eqxunet_" not in run.lower(*arrays(8, 9, 24, 3)).as_text()


def test_a_kernel_for_each_example():
    x, kernel, _ = arrays(6, 7, 16, 3)
    kernels = jnp.stack([kernel, 2 * kernel, -kernel])
    got = jax.vmap(depthwise_conv2d)(x, kernels)
    parity.assert_close(got, stock(x, kernel) * jnp.array([1, 2, -1])[:, None, None, None], 1e-5)


def test_in_bfloat16_sums_are_of_float32():
    inputs = arrays(9, 10, 32, 5, dtype=jnp.bfloat16)
    got = forward_and_gradients(ours)(*inputs)
    want = forward_and_gradients(stock)(*(array.astype(jnp.float32) for array in inputs))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.bfloat16
        parity.assert_close(a.astype(jnp.float32), b, 2**-8)


def test_without_native_kernels():
    in_a_process(__name__, "_check_without_native_kernels", EQXUNET_NATIVE="0")


def _check_without_native_kernels():
    run, inputs = forward_and_gradients(ours), arrays(16, 17, 32, 5)
    assert "eqxunet" not in run.lower(*inputs).as_text()
    compare(run(*inputs), forward_and_gradients(stock)(*inputs))


def test_rematerialising_keeps_its_outputs():
    x, kernel, _ = arrays(6, 7, 16, 3)

    def loss(kernel):
        return jnp.sum(jnp.sin(ours(x, kernel)) ** 2)

    kept = jax.checkpoint(loss, policy=is_convolution)
    calls = [str(jax.make_jaxpr(jax.grad(f))(kernel)).count("depthwise2d[") for f in (loss, kept)]
    assert calls == [1, 1]
