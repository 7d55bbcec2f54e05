"""BatchNorm's statistics that belong to the weights."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from eqxunet import ModelConfig, TrainConfig, build, precise_statistics
from eqxunet.data.augment import augment, to_float
from eqxunet.data.batches import batches
from eqxunet.data.cache import Split
from eqxunet.evaluation import Predictor, score
from eqxunet.models import batched
from eqxunet.models.layers import BatchNorm
from eqxunet.tasks import Binary
from eqxunet.training import fit, initialise, with_precise_statistics

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
    return to_float((shades + rng.integers(-20, 20, (n, b, size, size, 3))).astype(np.uint8))


def test_the_first_layers_statistics_are_those_of_all_its_pixels():
    model, state = build(SMALL, key=jax.random.key(0))
    images = noise(3, 4)
    first = running(model, precise_statistics(model, state, images))[0]
    x = jax.vmap(model.encoder.levels[0].conv1)(images.reshape(-1, 16, 16, 3))
    parity.assert_close(first["mean"], np.mean(x, (0, 1, 2)), 1e-5)
    parity.assert_close(first["var"], np.var(x, (0, 1, 2)), 1e-5)


def test_over_one_batch_inference_is_what_training_computes():
    model, state = build(SMALL, key=jax.random.key(0))
    images = noise(1, 4)
    state = precise_statistics(model, state, images)
    want, _ = batched(model)(images[0], state)
    got, _ = batched(eqx.nn.inference_mode(model))(images[0], state)
    parity.assert_close(got, want, 1e-5)


def test_earlier_statistics_have_no_part_and_are_not_used_up():
    model, state = build(SMALL, key=jax.random.key(0))
    images = noise(2, 4)
    _, other = batched(model)(noise(1, 4)[0], jax.tree.map(jnp.copy, state))
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
    model = eqx.tree_at(lambda m: m.encoder.levels[0].norm1.inference, model, True)
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
    return Split(images, np.where(disc, 1, 2).astype(np.uint8), tuple(map(str, range(count))))


def started(split, **changes):
    config = TrainConfig(batch_size=8, lr=3e-3, augment=False)
    config = dataclasses.replace(config, **changes)
    model, state = build(ModelConfig(channels=(8, 16, 32), size=32), key=jax.random.key(0))
    return initialise(model, state, config, Binary("trimap"), total_steps=48)


@pytest.mark.parametrize("augmented", [False, True])
def test_training_takes_them_over_the_batches_to_come_half_of_them_augmented(augmented):
    split = discs(128)
    trainer, train_state = started(split, augment=augmented)
    train_state = dataclasses.replace(train_state, step=jnp.asarray(5, jnp.int32))
    got = with_precise_statistics(trainer, train_state, split)
    images = []
    stream = batches(split, 8, seed=0, start=5)
    for step in (5, 6):  # an eighth of 16 steps
        batch = next(stream)
        if augmented:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), step)
            keys = jax.random.split(key, 8)
            changed = jax.vmap(lambda image, trimap, key: augment(image, trimap, key=key))
            images.append(changed(batch.images, batch.labels, keys)[0])
            images[-1] = images[-1].at[::2].set(to_float(batch.images[::2]))
        else:
            images.append(to_float(batch.images))
    model = trainer.model(train_state)
    want = precise_statistics(model, train_state.state, images)
    for a, b in zip(*(jax.tree.leaves(running(model, s)) for s in (got.state, want)), strict=True):
        parity.assert_close(a, b, 1e-5)


@pytest.mark.parametrize(
    ("count", "batch_size", "accumulate", "batches_taken"),
    [(112, 16, 1, 1), (112, 8, 1, 2), (270, 8, 1, 4), (12, 8, 1, 1), (3000, 4, 1, 64),
     (112, 16, 4, 4)],
)  # fmt: skip
def test_they_take_an_eighth_of_the_steps_within_bounds(
    monkeypatch, count, batch_size, accumulate, batches_taken
):
    sizes = []

    def taken(model, state, images):
        sizes.extend(len(part) for part in images)
        return state

    monkeypatch.setattr("eqxunet.training.loop.precise_statistics", taken)
    split = discs(count, size=8)
    trainer, train_state = started(split, batch_size=batch_size, accumulate=accumulate)
    with_precise_statistics(trainer, train_state, split)
    assert sizes == [batch_size // accumulate] * batches_taken


@pytest.mark.slow
def test_a_short_run_scores_what_its_weights_can():
    """Few steps at Flax's momentum: its statistics predict nothing, those taken anew all there is.

    At every epoch after the second the score is near that with statistics over all images.
    """
    train, val = discs(64), discs(90)
    val = dataclasses.replace(
        val, images=val.images[64:], labels=val.labels[64:], names=val.names[64:]
    )
    trainer, train_state = started(train)
    everything = to_float(train.images.reshape(8, 8, 32, 32, 3))
    scores = []
    for trained, _ in fit(trainer, train_state, train):
        if trained.step % 8 == 0:
            model = trainer.model(trained)
            few = with_precise_statistics(trainer, trained, train).state
            whole = precise_statistics(model, trained.state, everything)
            inference = eqx.nn.inference_mode(model)
            scores.append(
                [
                    score(Predictor(inference, s, trainer.task), val).iou.mean()
                    for s in (trained.state, few, whole)
                ]
            )
    left_by_training, precise, whole = np.transpose(scores)
    assert np.abs(precise - whole)[2:].max() < 0.1
    assert precise[-1] > 0.8 and precise.argmax() >= 3
    assert precise[-1] > left_by_training[-1] + 0.2
