"""BatchNorm's statistics that belong to the weights."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from eqxunet import ModelConfig, TrainConfig, build, precise_statistics
from eqxunet.data.augment import to_float
from eqxunet.data.batches import statistics_batches
from eqxunet.data.cache import Arrays
from eqxunet.evaluation import evaluate
from eqxunet.models import batched
from eqxunet.models.layers import BatchNorm
from eqxunet.training import fit, initialise

SMALL = ModelConfig(channels=(4, 6, 8))


def running(model, state):
    """All running statistics, by layer."""
    leaves = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, BatchNorm))
    return [jax.device_get(state.get(leaf.running)) for leaf in leaves if is_norm(leaf)]


def is_norm(node):
    return isinstance(node, BatchNorm)


def noise(n, b, size=16):
    rng = np.random.default_rng(0)
    shades = rng.integers(20, 235, (n, b, 1, 1, 3))
    return (shades + rng.integers(-20, 20, (n, b, size, size, 3))).astype(np.uint8)


def test_the_first_layers_statistics_are_those_of_all_its_pixels():
    model, state = build(SMALL, key=jax.random.key(0))
    images = noise(3, 4)
    first = running(model, precise_statistics(model, state, images))[0]
    x = jax.vmap(model.down[0].block.conv1)(to_float(images.reshape(-1, 16, 16, 3)))
    parity.assert_close(first["mean"], np.mean(x, (0, 1, 2)), 1e-5)
    parity.assert_close(first["var"], np.var(x, (0, 1, 2)), 1e-5)


def test_over_one_batch_inference_is_what_training_computes():
    model, state = build(SMALL, key=jax.random.key(0))
    images = noise(1, 4)
    state = precise_statistics(model, state, images)
    want, _ = batched(model)(to_float(images[0]), state)
    got, _ = batched(eqx.nn.inference_mode(model))(to_float(images[0]), state)
    parity.assert_close(got, want, 1e-5)


def test_earlier_statistics_have_no_part_and_are_not_used_up():
    model, state = build(SMALL, key=jax.random.key(0))
    images = noise(2, 4)
    _, other = batched(model)(to_float(noise(1, 4)[0]), jax.tree.map(jnp.copy, state))
    results = [running(model, precise_statistics(model, s, images)) for s in (state, other)]
    assert eqx.tree_equal(*results)
    running(model, state)  # raises where the state was used up


def test_statistics_that_were_not_finite_are_left_behind():
    model, state = build(SMALL, key=jax.random.key(0))
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), state)
    images = noise(2, 4)
    results = [running(model, precise_statistics(model, s, images)) for s in (state, broken)]
    assert eqx.tree_equal(*results)


def test_a_layer_in_inference_mode_keeps_its_statistics():
    model, state = build(SMALL, key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.down[0].block.norm1.inference, model, True)
    before = running(model, state)
    after = running(model, precise_statistics(model, state, noise(2, 4)))
    assert eqx.tree_equal(before[0], after[0])
    assert not any(eqx.tree_equal(a, b) for a, b in zip(before[1:], after[1:], strict=True))


def test_a_model_without_trained_norms_keeps_its_state():
    model, state = build(SMALL, key=jax.random.key(0))
    model = eqx.nn.inference_mode(model)
    assert eqx.tree_equal(
        running(model, state), running(model, precise_statistics(model, state, noise(2, 4)))
    )


def discs(count, size=32):
    """Bright discs on grounds of many shades."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size]
    centre = rng.uniform(size / 4, 3 * size / 4, (count, 2, 1, 1))
    disc = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < (size / 4) ** 2
    ground = rng.integers(0, 100, (count, 1, 1, 3)) + rng.integers(0, 60, (count, size, size, 3))
    images = np.where(disc[..., None], ground + 60, ground).astype(np.uint8)
    return Arrays(images, np.where(disc, 1, 2).astype(np.uint8), tuple(map(str, range(count))))


@pytest.mark.parametrize(
    ("count", "batch_size", "parts", "shape"),
    [
        (112, 16, 1, (1, 16)),
        (112, 8, 1, (2, 8)),
        (270, 8, 1, (4, 8)),
        (1000, 4, 1, (31, 4)),
        (3000, 4, 1, (64, 4)),
        (600, 512, 1, (1, 512)),
        (12, 8, 1, (1, 8)),
        (112, 16, 4, (4, 4)),
    ],
)
def test_statistics_take_an_eighth_of_the_steps_within_bounds(count, batch_size, parts, shape):
    arrays = discs(count, size=8)
    found = statistics_batches(arrays, batch_size, seed=3, parts=parts)
    assert found.shape == (*shape, 8, 8, 3)
    flat = found.reshape(-1, 8 * 8 * 3)
    assert len(np.unique(flat[:, :24], axis=0)) == len(flat), "an image twice"
    again = statistics_batches(arrays, batch_size, seed=3, parts=parts)
    np.testing.assert_array_equal(found, again)


@pytest.mark.slow
def test_a_short_run_scores_what_its_weights_can():
    """Few steps at Flax's momentum: its statistics predict nothing, those taken anew all there is.

    At every epoch after the second the score is near that with statistics over all images.
    """
    config = TrainConfig(batch_size=8, lr=3e-3, augment=False)
    train, val = discs(64), discs(90)
    val = dataclasses.replace(
        val, images=val.images[64:], trimaps=val.trimaps[64:], names=val.names[64:]
    )
    model, state = build(ModelConfig(channels=(8, 16, 32), size=32), key=jax.random.key(0))
    fixed, train_state = initialise(model, state, config, total_steps=48)
    few = statistics_batches(train, 8, seed=0)
    everything = train.images.reshape(8, 8, 32, 32, 3)
    scores = []
    for trained, _ in fit(fixed, train_state, train, total_steps=48):
        if trained.step % 8 == 0:
            model = fixed.model(trained)
            states = [precise_statistics(model, trained.state, x) for x in (few, everything)]
            inference = eqx.nn.inference_mode(model)
            scores.append(
                [
                    evaluate(inference, s, val).counts["foreground"].iou.mean()
                    for s in (trained.state, *states)
                ]
            )
    left_by_training, precise, whole = np.transpose(scores)
    assert np.abs(precise - whole)[2:].max() < 0.1
    assert precise[-1] > 0.8 and precise.argmax() >= 3
    assert precise[-1] > left_by_training[-1] + 0.2
