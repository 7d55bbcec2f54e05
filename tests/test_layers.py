"""Layers against closed forms in NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from jaxtyping import TypeCheckError

from eqxunet.models.layers import BatchNorm, Conv, ConvTranspose, GroupNorm, max_pool, resize


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_conv_pads_zeros_at_the_same_places_as_flax():
    conv = Conv(2, 3, stride=2, key=jax.random.key(0))
    x = random(6, 8, 2)
    kernel, padded = np.asarray(conv.kernel), np.pad(x, ((0, 1), (0, 1), (0, 0)))
    want = np.zeros((3, 4, 3))
    for i in range(3):
        for j in range(4):
            window = padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            want[i, j] = np.einsum("abi,abio->o", window, kernel)
    parity.assert_close(conv(jnp.array(x)), want, 1e-5)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": "VALID"},
        {"kernel_size": 7, "stride": 2, "padding": ((3, 3), (3, 3))},
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 2, "stride": 2, "padding": "VALID"},
    ],
)
def test_relu_before_and_after_a_conv_honour_its_options(options, use_bias):
    conv = Conv(4, 6, use_bias=use_bias, key=jax.random.key(0), **options)
    if use_bias:
        conv = eqx.tree_at(lambda layer: layer.bias, conv, jnp.array(random(6, seed=1)))
    x, scale, offset = map(jnp.array, (random(18, 20, 4), random(4, seed=2), random(4, seed=3)))

    def gradients(function):
        return jax.grad(lambda inputs: jnp.sum(jnp.sin(function(*inputs))))((conv, x))

    for mine, plain in (
        (lambda conv, x: conv.then_relu(x), lambda conv, x: jax.nn.relu(conv(x))),
        (
            lambda conv, x: conv.of_relu(x, scale, offset),
            lambda conv, x: conv(jax.nn.relu(x * scale + offset)),
        ),
    ):
        parity.assert_close(mine(conv, x), plain(conv, x), 1e-5)
        for a, b in zip(*map(jax.tree.leaves, map(gradients, (mine, plain))), strict=True):
            parity.assert_close(a, b, 1e-4)


def test_conv_transpose_does_not_flip_the_kernel():
    up = ConvTranspose(3, 4, key=jax.random.key(0))
    up = eqx.tree_at(lambda layer: layer.bias, up, jnp.array(random(4, seed=1)))
    x = random(5, 7, 3)
    want = np.zeros((10, 14, 4))
    for a in range(2):
        for b in range(2):
            want[a::2, b::2] = x @ np.asarray(up.kernel[1 - a, 1 - b]) + np.asarray(up.bias)
    parity.assert_close(up(jnp.array(x)), want, 1e-5)


def test_batch_norm_trains_with_the_batch_and_infers_with_the_running_statistics():
    norm, state = eqx.nn.make_with_state(BatchNorm)(3)
    norm = eqx.tree_at(
        lambda n: (n.scale, n.bias), norm, (jnp.array([1.0, 2, 3]), jnp.array([0.5, 0, -1]))
    )
    x = 3 + 2 * random(4, 5, 6, 3)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    batched = dict(in_axes=(0, None), out_axes=(0, None), axis_name="batch")
    y, state = jax.vmap(norm, **batched)(jnp.array(x), state)
    want = (x - mean) / np.sqrt(var + 1e-5) * norm.scale + norm.bias
    parity.assert_close(y, want, 1e-5)

    running = state.get(norm.running)
    parity.assert_close(running["mean"], 0.01 * mean, 1e-5)
    parity.assert_close(running["var"], 0.99 + 0.01 * var, 1e-5)

    y, after = jax.vmap(eqx.nn.inference_mode(norm), **batched)(jnp.array(x), state)
    want = (x - 0.01 * mean) / np.sqrt(0.99 + 0.01 * var + 1e-5) * norm.scale + norm.bias
    parity.assert_close(y, want, 1e-5)
    assert eqx.tree_equal(after.get(norm.running), running)


def test_group_norm():
    norm = GroupNorm(8)
    norm = eqx.tree_at(
        lambda n: (n.scale, n.bias), norm, (jnp.array(random(8)), jnp.array(random(8, seed=1)))
    )
    x = 1 + random(5, 6, 8, seed=2)
    groups = x.reshape(5, 6, 4, 2)
    mean, var = groups.mean((0, 1, 3), keepdims=True), groups.var((0, 1, 3), keepdims=True)
    want = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * norm.scale + norm.bias
    parity.assert_close(norm(jnp.array(x)), want, 1e-5)


@pytest.mark.parametrize(("window", "size"), [(2, (6, 8)), (2, (5, 7)), (3, (6, 8)), (3, (7, 5))])
def test_max_pool_rounds_up_and_padding_never_wins(window, size):
    x = -5 + random(*size, 2)  # negative, so that a padding of zeros would win
    h, w = (-(-n // 2) for n in size)
    want = np.empty((h, w, 2))
    # "SAME" pads the smaller half first: nothing above but for odd sizes under window 3.
    before = [max((m - 1) * 2 + window - n, 0) // 2 for m, n in zip((h, w), size, strict=True)]
    for i in range(h):
        for j in range(w):
            top, left = 2 * i - before[0], 2 * j - before[1]
            part = x[max(top, 0) : top + window, max(left, 0) : left + window]
            want[i, j] = part.max((0, 1))
    np.testing.assert_array_equal(max_pool(jnp.array(x), window), want)


def test_resize_to_the_same_size_is_the_identity():
    x = jnp.array(random(4, 5, 2))
    assert resize(x, 4, 5) is x
    assert resize(x, 7, 3).shape == (7, 3, 2)


@pytest.mark.parametrize("layer", [Conv(2, 3, key=jax.random.key(0)), GroupNorm(4)])
def test_wrong_shapes_raise(layer):
    with pytest.raises((TypeCheckError, TypeError)):
        layer(jnp.zeros((1, 4, 4, 2)))


def test_layers_compute_in_the_dtype_of_their_input():
    x = jnp.ones((8, 8, 4), jnp.bfloat16)
    for layer in (
        Conv(4, 4, use_bias=True, key=jax.random.key(0)),
        ConvTranspose(4, 4, key=jax.random.key(0)),
        GroupNorm(4),
    ):
        assert layer(x).dtype == jnp.bfloat16
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(layer))
