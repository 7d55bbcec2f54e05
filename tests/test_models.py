"""The U-Net: sizes, state, names, errors."""

from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from eqxunet import ModelConfig, build, from_flax
from eqxunet.config import Encoder
from eqxunet.errors import IntegrityError
from eqxunet.models import ENCODERS, PlainEncoder, UNet
from eqxunet.models.decoder import Decoder, count_blocks
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


@pytest.mark.parametrize("in_channels", [1, 5])
def test_images_have_the_channels_of_the_encoder(in_channels):
    def make():
        encoder = PlainEncoder(in_channels, (4, 6), key=jax.random.key(0))
        return UNet(encoder, size=8, key=jax.random.key(1))

    model, state = eqx.nn.make_with_state(make)()
    model = eqx.nn.inference_mode(model)
    logits, _ = eqx.filter_eval_shape(model, jnp.zeros((8, 9, in_channels)), state)
    assert logits.shape == (8, 9, 1)
    with pytest.raises(TypeCheckError):
        eqx.filter_eval_shape(model, jnp.zeros((8, 9, 3)), state)


def test_every_name_of_the_configuration_has_its_encoder():
    assert tuple(ENCODERS) == get_args(Encoder)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_logit_for_each_output(encoder):
    config = ModelConfig(encoder=encoder)
    model, state = eqx.filter_eval_shape(build, config, outputs=4, key=jax.random.key(0))
    logits, _ = eqx.filter_eval_shape(eqx.nn.inference_mode(model), jnp.zeros((33, 40, 3)), state)
    assert logits.shape == (33, 40, 4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoders_make_the_maps_that_they_declare(encoder):
    make = lambda: ENCODERS[encoder](ModelConfig(encoder=encoder), jax.random.key(0))  # noqa: E731
    model, state = eqx.filter_eval_shape(eqx.nn.make_with_state(make))
    image = jnp.zeros((64, 96, model.in_channels))
    maps, _ = eqx.filter_eval_shape(eqx.nn.inference_mode(model), image, state)
    assert [x.shape for x in maps] == [
        (64 // stride, 96 // stride, channels)
        for stride, channels in zip(model.strides, model.channels, strict=True)
    ]


@pytest.mark.parametrize(
    ("channels", "strides", "decoded", "skips"),
    [
        ((32, 64, 128, 256), (1, 2, 4, 8), [128, 64, 32], (2, 1, 0)),
        ((64, 128, 256, 512), (4, 8, 16, 32), [256, 128, 64, 32, 16], (2, 1, 0, None, None)),
        ((16, 24, 40, 112, 320), (2, 4, 8, 16, 32), [160, 80, 48, 32, 16], (3, 2, 1, 0, None)),
        ((64, 256, 2048), (2, 4, 32), [256, 128, 64, 32, 16], (None, None, 1, 0, None)),
        ((6, 7), (2, 8), [16, 16, 16], (None, 0, None)),
        ((5,), (1,), [], ()),
    ],
)
def test_a_decoder_fits_the_pyramid(channels, strides, decoded, skips):
    keys = jax.random.split(jax.random.key(0), 6)[: count_blocks(strides)]
    decoder = eqx.filter_eval_shape(Decoder, channels, strides, keys=keys)
    assert [up.up.kernel.shape[-1] for up in decoder.up] == decoded
    assert [up.block.conv2.kernel.shape[-1] for up in decoder.up] == decoded
    assert decoder.skips == skips
    assert decoder.out_channels == [*channels[-1:], *decoded][-1]


@pytest.mark.parametrize("strides", [(), (3,), (2, 2), (4, 2), (0, 1)])
def test_strides_that_no_decoder_fits(strides):
    with pytest.raises(ValueError, match="rising powers of two"):
        count_blocks(strides)


def test_models_print_in_a_line(small):
    assert repr(small[0]) == "UNet(PlainEncoder 4-6-8, 1 output, 3,619 parameters)"
    frozen = jax.tree.map(lambda _: None, small[0])
    assert str(frozen) == "UNet(PlainEncoder 4-6-8, 1 output, 0 parameters)"


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
    name = "encoder.levels.0.norm1.running.mean"
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
