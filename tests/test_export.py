"""Files of `jax.export`, which hold no call of the native kernels."""

import equinox as eqx
import jax
import jax.numpy as jnp
import parity
import pytest
from jax import export

from eqxunet import ModelConfig, build
from eqxunet.ops import conv2d, conv2d_of_relu, relu_of_conv2d
from eqxunet.ops.kernels import is_native


def through_a_file(function, *arguments):
    """The result of a function that was exported for CPUs, written and read."""
    assert is_native()
    written = export.export(jax.jit(function), platforms=["cpu"])(*arguments).serialize()
    return export.deserialize(written).call(*arguments)


@pytest.mark.parametrize(
    "function",
    [
        conv2d,
        lambda x, kernel: conv2d_of_relu(x, x[0, 0], x[1, 1], kernel),
        lambda x, kernel: relu_of_conv2d(x, kernel, kernel[0, 0, 0]),
        jax.grad(lambda x, kernel: jnp.sum(conv2d(x, kernel) ** 2), argnums=1),
    ],
)
def test_convolutions(function):
    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (16, 16, 8)), jax.random.normal(keys[1], (3, 3, 8, 8))
    assert "eqxunet_" in jax.jit(function).lower(x, kernel).as_text()
    got = through_a_file(function, x, kernel)
    parity.assert_close(got, jax.jit(function)(x, kernel), 1e-5)


def test_a_unet_for_inference():
    model, state = build(ModelConfig(channels=(4, 6, 8)), key=jax.random.key(0))
    model = eqx.nn.inference_mode(model)
    image = jax.random.uniform(jax.random.key(1), (32, 40, 3))
    got = through_a_file(lambda image: model(image, state)[0], image)
    parity.assert_close(got, model(image, state)[0], 1e-5)
