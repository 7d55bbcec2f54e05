"""Equality with the Flax originals: stored references, and live Flax where it is installed."""

import hashlib
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from eqxunet import ModelConfig, build, from_flax
from eqxunet.models.flax import _flax_name
from eqxunet.models.layers import max_pool
from eqxunet.models.leaves import named_leaves, named_state
from eqxunet.tasks import Binary
from eqxunet.training.step import batch_loss

DATA = Path(__file__).parent / "data"
SIZES = {"scratch": (37, 50), "resnet10": (49, 66)}
LEARNING_RATE = 0.1


def config(encoder):
    channels = {"channels": parity.CHANNELS} if encoder == "scratch" else {}
    return ModelConfig(encoder=encoder, **channels)


def exact(encoder):
    """The model with the weights that both sides derive from Flax's names."""
    model, state = build(config(encoder), key=jax.random.key(0))
    variables = {"params": {}, "batch_stats": {}}
    for kind, leaves in (
        ("params", named_leaves(model)),
        ("batch_stats", named_state(model, state)),
    ):
        for path, leaf in leaves.items():
            *scopes, name = _flax_name(model, path).split("/")
            node = variables[kind]
            for scope in scopes:
                node = node.setdefault(scope, {})
            node[name] = parity.variable("/".join([kind, *scopes, name]), leaf.shape)
    return from_flax(model, state, variables)


@eqx.filter_jit
def run(model, state, images):
    forward = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
    return forward(images, state)


@pytest.fixture(params=SIZES)
def case(request):
    h, w = SIZES[request.param]
    images, masks = parity.images(2, h, w), parity.masks(2, h, w)
    stored = np.load(DATA / f"{request.param}.npz")
    return request.param, stored, jnp.array(images), jnp.array(masks)


def test_references_are_those_of_the_provenance():
    about = json.loads((DATA / "provenance.json").read_text())
    for name, sha256 in about["sha256"].items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == sha256


def test_logits(case):
    encoder, stored, images, _ = case
    model, state = exact(encoder)
    inference, _ = run(eqx.nn.inference_mode(model), state, images)
    parity.assert_close(inference, stored["inference"], 1e-4, "inference")
    training, _ = run(model, state, images)
    parity.assert_close(training, stored["logits"], 1e-4, "training")


def test_stages(case):
    encoder, stored, images, _ = case
    model, state = exact(encoder)
    stages = _scratch_stages if encoder == "scratch" else _resnet10_stages

    @eqx.filter_jit
    def forward(model, state, images):
        return jax.vmap(stages, in_axes=(None, None, 0), axis_name="batch")(model, state, images)

    got = forward(model, state, images)
    want = {name for name in stored.files if name.startswith("stages/")}
    assert {f"stages/{name}" for name in got} == want
    for name, output in got.items():
        parity.assert_close(output, stored[f"stages/{name}"], 1e-4, name)


def _scratch_stages(model, state, x):
    (*skips, x), state = model.encoder(x, state)
    outputs = {"ConvBlock_0": x}
    for i, skip in enumerate(skips):
        outputs[f"DownBlock_{i}/0"], outputs[f"DownBlock_{i}/1"] = max_pool(skip), skip
    for i, (up, skip) in enumerate(zip(model.decoder.up, reversed(skips), strict=True)):
        x, state = up(x, skip, state)
        outputs[f"UpBlock_{i}"] = x
    return outputs


def _resnet10_stages(model, state, x):
    features, state = model.encoder(x, state)
    outputs = {f"encoder/{i}": feature for i, feature in enumerate(features)}
    s1, s2, s3, x = features
    for i, (up, skip) in enumerate(zip(model.decoder.up, (s3, s2, s1, None, None), strict=True)):
        x, state = up(x, skip, state)
        outputs[f"decoder/UpBlock_{i}"] = x
    return outputs


def test_gradient_and_statistics(case):
    encoder, stored, images, masks = case
    model, state = exact(encoder)

    @eqx.filter_jit
    def step(model, state):
        (loss, (state, _)), gradient = eqx.filter_value_and_grad(batch_loss, has_aux=True)(
            model, state, images, masks.astype(jnp.uint8), Binary()
        )
        return (
            loss,
            state,
            gradient,
            eqx.apply_updates(model, jax.tree.map(lambda g: -LEARNING_RATE * g, gradient)),
        )

    loss, state, gradient, model = step(model, state)
    parity.assert_close(loss, stored["loss"], 1e-5, "loss")
    largest = max(stored[name] for name in stored.files if name.startswith("gradient_scale/"))
    for path, leaf in named_leaves(gradient).items():
        name = _flax_name(model, path)
        # A bias before a BatchNorm has no gradient but rounding: it is held to the tree's scale.
        scale = max(stored[f"gradient_scale/{name}"], 1e-3 * largest)
        parity.assert_close(
            parity.sample(leaf), stored[f"gradient/{name}"], 1e-4, name, scale=scale
        )
    _, state, _, _ = step(model, state)
    for path, leaf in named_state(model, state).items():
        name = _flax_name(model, path)
        parity.assert_close(leaf, stored[f"batch_stats/{name}"], 1e-4, name)


@pytest.mark.reference
@pytest.mark.parametrize("encoder", SIZES)
@pytest.mark.parametrize("size", [(128, 128), (97, 130)])
def test_live_flax_on_random_weights(encoder, size):
    flax_models = pytest.importorskip("flax_models", reason="needs the extra `reference`")
    original = flax_models.UNet() if encoder == "scratch" else flax_models.ResNetUNet()
    images = jax.random.uniform(jax.random.key(1), (2, *size, 3))
    variables = original.init(jax.random.key(2), images)
    model, state = build(ModelConfig(encoder=encoder), key=jax.random.key(0))
    model, state = from_flax(model, state, variables)

    want, updates = original.apply(variables, images, train=True, mutable=["batch_stats"])
    got, state = run(model, state, images)
    parity.assert_close(got, want, 1e-4, "training")
    want = dict(parity.flat(updates["batch_stats"]))
    for path, leaf in named_state(model, state).items():
        name = _flax_name(model, path)
        parity.assert_close(leaf, want[name], 1e-5, name)
    want = original.apply({"params": variables["params"], **updates}, images, train=False)
    got, _ = run(eqx.nn.inference_mode(model), state, images)
    parity.assert_close(got, want, 1e-4, "inference")


@pytest.mark.reference
def test_from_flax_takes_other_stage_sizes():
    flax_models = pytest.importorskip("flax_models", reason="needs the extra `reference`")
    sizes = (2, 1, 2, 1)
    images = jax.random.uniform(jax.random.key(1), (1, 64, 64, 3))
    original = flax_models.ResNetUNet(sizes)
    variables = original.init(jax.random.key(2), images)
    model, state = build(ModelConfig(encoder="resnet10", stage_sizes=sizes), key=jax.random.key(0))
    model, state = from_flax(model, state, variables)
    got, _ = run(eqx.nn.inference_mode(model), state, images)
    parity.assert_close(got, original.apply(variables, images, train=False), 1e-4)
