"""Folding BatchNorm into the convolutions before it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import parity
import pytest

import eqxunet as eu
from eqxunet.models.layers import BatchNorm

CONFIGS = {
    "scratch": eu.ModelConfig(channels=(8, 16, 24)),
    "resnet10": eu.ModelConfig(encoder="resnet10"),
}


@pytest.mark.parametrize("encoder", CONFIGS)
def test_equal_to_the_model_in_inference_mode(encoder):
    model, state = eu.build(CONFIGS[encoder], key=jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (4, 64, 72, 3))
    batched = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
    for _ in range(3):  # running statistics other than the initial ones
        _, state = batched(images, state)
    model = eqx.tree_at(_scales, model, replace_fn=lambda scale: scale + 0.5 * jnp.sin(7 * scale))
    folded = eu.fold(model, state)
    want, _ = eqx.nn.inference_mode(model)(images[0], state)
    got, unchanged = folded(images[0], state)
    parity.assert_close(got, want, 1e-5, "logits")
    assert eqx.tree_equal(unchanged, state)
    assert not _norms(folded) and _norms(model)


def _norms(model):
    is_norm = lambda node: isinstance(node, BatchNorm)  # noqa: E731
    return [n for n in jax.tree.leaves(model, is_leaf=is_norm) if is_norm(n)]


def _scales(model):
    return [norm.scale for norm in _norms(model)]
