"""The two U-Nets: sizes, state, names, errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from eqxunet import ModelConfig, build, from_flax
from eqxunet.errors import IntegrityError
from eqxunet.models.leaves import named_leaves, named_state, replace_leaves, replace_state

SMALL = ModelConfig(channels=(4, 6, 8))


@pytest.fixture(scope="module")
def small():
    return build(SMALL, key=jax.random.key(0))


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (31, 45)])
def test_logits_have_the_size_of_the_image(small, size):
    model, state = eqx.nn.inference_mode(small[0]), small[1]
    logits, _ = model(jnp.zeros((*size, 3)), state)
    assert logits.shape == (*size, 1)


@pytest.mark.parametrize("size", [(1, 1), (33, 50)])
def test_resnet10_logits_have_the_size_of_the_image(size):
    model, state = build(ModelConfig(encoder="resnet10"), key=jax.random.key(0))
    model = eqx.nn.inference_mode(model)
    logits, _ = eqx.filter_eval_shape(model, jnp.zeros((*size, 3)), state)
    assert logits.shape == (*size, 1)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (2, 8, 8, 3)])
def test_images_of_another_shape_raise(small, shape):
    with pytest.raises(TypeCheckError):
        small[0](jnp.zeros(shape), small[1])


def test_parameter_counts():
    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree) if hasattr(leaf, "size"))

    scratch, resnet10 = (
        eqx.filter_eval_shape(build, ModelConfig(encoder=encoder), key=jax.random.key(0))[0]
        for encoder in ("scratch", "resnet10")
    )
    assert size(scratch) == 1_927_009
    assert size(resnet10.encoder) == 4_905_792


def test_keys_give_different_weights_and_the_same_key_the_same(small):
    again, _ = build(SMALL, key=jax.random.key(0))
    other, _ = build(SMALL, key=jax.random.key(1))
    assert eqx.tree_equal(again, small[0])
    kernels = [name for name in named_leaves(other) if name.endswith("kernel")]
    for name in kernels:
        assert (named_leaves(other)[name] != named_leaves(again)[name]).any(), name
    assert len(kernels) == 2 * 5 + 2 + 1


def test_named_leaves_are_replaced_and_others_stay(small):
    model, state = small
    new = {"head.bias": jnp.array([7.0])}
    changed = replace_leaves(model, new)
    assert changed.head.bias == 7
    assert changed.head.kernel is model.head.kernel
    name = "down.0.block.norm1.running.mean"
    clone = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(state))
    changed_state = replace_state(model, clone, {name: jnp.full(4, 3.0)})
    assert (named_state(model, changed_state)[name] == 3).all()
    with pytest.raises(IntegrityError, match=r"head\.bias is float32\[2\] .* float32\[1\]"):
        replace_leaves(model, {"head.bias": jnp.zeros(2)})
    with pytest.raises(IntegrityError, match="foot.bias is not in the model"):
        replace_leaves(model, {"foot.bias": jnp.zeros(2)})


def test_from_flax_lists_what_does_not_fit(small):
    with pytest.raises(IntegrityError, match=r"'Conv_0/bias'.*unknown \['Dense_0/kernel'"):
        from_flax(*small, {"params": {"Dense_0": {"kernel": jnp.zeros(1)}}, "batch_stats": {}})
