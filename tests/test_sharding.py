"""Convolutions divided among devices: by automatic, explicit and manual axes of a mesh.

What one device computes, `test_conv.py` and `test_fused.py` compare with XLA; here it is what
several have to compute together.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import parity
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_conv import in_a_process
from test_fused import draw

from eqxunet import ModelConfig, build
from eqxunet.models import batched
from eqxunet.ops import (
    conv2d,
    conv2d_of_relu,
    conv2d_transpose,
    depthwise_conv2d,
    relu_of_conv2d,
)

DEVICES = 4
FLAGS = f"--xla_force_host_platform_device_count={DEVICES}"
# Functions of an example and of what all share: kernel, and scale and offset or bias.
FUNCTIONS = {
    "3x3": lambda x, kernel, scale, offset: conv2d(x, kernel),
    "3x3, stride 2": lambda x, kernel, scale, offset: conv2d(x, kernel, stride=2),
    "depthwise": lambda x, kernel, scale, offset: depthwise_conv2d(
        jnp.concatenate([x, x], 2), jnp.concatenate([kernel, kernel], 3)[:, :, :1]
    ),
    "1x1": lambda x, kernel, scale, offset: conv2d(x, kernel[:1, :1]),
    "1x1, stride 2": lambda x, kernel, scale, offset: conv2d(x, kernel[:1, :1], stride=2),
    "tiles": lambda x, kernel, scale, offset: conv2d(x, kernel[:2, :2], stride=2, padding="VALID"),
    "transposed": lambda x, kernel, scale, offset: conv2d_transpose(x, kernel[:2, :2]),
    "of relu": lambda x, kernel, scale, offset: conv2d_of_relu(x, scale, offset, kernel),
    "relu of": lambda x, kernel, scale, offset: relu_of_conv2d(x, kernel, offset),
}


@pytest.mark.parametrize("check", ["automatic", "explicit", "explicit_unet"])
def test_on_four_devices(check):
    in_a_process(__name__, f"_check_{check}", XLA_FLAGS=FLAGS)


@pytest.mark.parametrize("native", ["1", "0"])
def test_inside_shard_map_a_shared_kernel_gets_the_sum_of_all_gradients(native):
    in_a_process(__name__, "_check_manual", XLA_FLAGS=FLAGS, EQXUNET_NATIVE=native)


def _mesh(kind):
    assert jax.device_count() == DEVICES
    return jax.make_mesh((DEVICES,), ("batch",), axis_types=(kind,))


def _operands():
    x, scale, offset, kernel, _, _ = draw(12, 16, 8, 8, batch=2 * DEVICES)
    return x, kernel, scale, offset


def _divided(mesh, x, *shared):
    return jax.device_put(x, NamedSharding(mesh, P("batch"))), *jax.device_put(
        shared, NamedSharding(mesh, P())
    )


def _run(function):
    """Output, and gradients: of a batch, of each example, and second ones.

    No gradient of the kernel by each example: XLA divides its grouped convolutions wrongly, those
    of `lax.conv_general_dilated` too (jaxlib 0.10.2, CPU).
    """
    axes = (0, None, None, None)

    def loss(x, *shared):
        return jnp.sum(jnp.sin(function(x, *shared)))

    def over_batch(kernel, x, *others):
        return jnp.sum(jax.vmap(loss, axes)(x, kernel, *others))

    def slope(kernel, x, *others):
        return jnp.sum(jax.grad(over_batch)(kernel, x, *others) ** 2)

    @jax.jit
    def run(x, kernel, *others):
        out, pull = jax.vjp(jax.vmap(function, axes), x, kernel, *others)
        each = jax.vmap(jax.grad(loss, argnums=(0, 2, 3)), axes)(x, kernel, *others)
        return out, pull(jnp.cos(out)), each, jax.grad(slope)(kernel, x, *others)

    return run


def _compare(mesh, name, function):
    operands = _operands()
    want = _run(function)(*operands)
    got = _run(function)(*_divided(mesh, *operands))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        parity.assert_close(a, b, 1e-4, name)
    return got


def _check_automatic():
    mesh = _mesh(AxisType.Auto)
    for name, function in FUNCTIONS.items():
        _compare(mesh, name, function)


def _check_explicit():
    mesh = _mesh(AxisType.Explicit)
    for name, function in FUNCTIONS.items():
        out, (x, *shared), each, second = _compare(mesh, name, function)
        for array in (out, x, *each):
            assert jax.typeof(array).sharding.spec[0] == "batch", name
        for array in (*shared, second):
            assert jax.typeof(array).sharding.is_fully_replicated, name
    x, kernel, _, _ = _divided(mesh, *_operands())
    with jax.set_mesh(mesh):
        want = jax.vmap(conv2d, (0, None))(x, kernel)
        kernels = jax.sharding.reshard(jnp.stack([kernel] * len(x)), P("batch"))
        got = jax.vmap(conv2d)(x, kernels)
        parity.assert_close(got, want, 1e-5, "a kernel an example")
        with pytest.raises(ValueError, match="divided over its examples alone"):
            conv2d(jax.sharding.reshard(_operands()[0][0], P("batch")), kernel)


def _check_explicit_unet():
    """Statistics of the batch, loss, and every leaf's gradient."""
    # The devices divide the channels: JAX's lowering of pmean in vmap fails elsewhere (0.10.2).
    model, state = build(ModelConfig(channels=(4, 8, 12)), key=jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (DEVICES, 16, 24, 3))
    mesh = _mesh(AxisType.Explicit)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model, state, images):
        logits, state = batched(model)(images, state)
        return jnp.mean(jax.nn.softplus(logits)), state

    want = loss(model, state, images)
    with jax.set_mesh(mesh):
        images, whole = _divided(mesh, images, eqx.filter((model, state), eqx.is_array))
        got = loss(*eqx.combine(whole, (model, state)), images)
    got, want = (jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (got, want))
    for a, b in zip(got, want, strict=True):
        parity.assert_close(a, b, 1e-4, "loss, state and gradients")


def _check_manual():
    for kind in (AxisType.Auto, AxisType.Explicit):
        with jax.set_mesh(_mesh(kind)):
            for name, function in FUNCTIONS.items():
                _check_sum_over_shards(name, function)


def _check_sum_over_shards(name, function):
    x, *shared = _operands()

    def loss(shared, x):
        out = jax.vmap(lambda example: function(example, *shared))(x)
        return jnp.sum(out**2)

    def gradient(shared, x):
        return jax.grad(lambda shared: lax.psum(loss(shared, x), "batch"))(shared)

    sharded = jax.shard_map(gradient, in_specs=(P(), P("batch")), out_specs=P())
    got = jax.jit(sharded)(shared, _divided(jax.sharding.get_mesh(), x)[0])
    for a, b in zip(got, jax.grad(loss)(shared, x), strict=True):
        parity.assert_close(a, b, 1e-4, name)
