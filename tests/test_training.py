"""The compiled step: what moves, what must not, and that a run can be repeated bit for bit."""

import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxunet import ModelConfig, TrainConfig, build
from eqxunet.data.augment import to_float
from eqxunet.data.batches import Batch
from eqxunet.data.cache import Split
from eqxunet.errors import InputError, IntegrityError
from eqxunet.optimizer import learning_rate
from eqxunet.training import (
    batch_gradient,
    batch_loss,
    compile_step,
    fit,
    from_arrays,
    initialise,
    to_arrays,
    train_step,
)

SMALL = ModelConfig(channels=(4, 6, 8))
CONFIG = TrainConfig(batch_size=4, lr=1e-2, weight_decay=0.1, schedule="constant")


def arrays(count=10, size=16):
    """Bright discs on dark noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    centre = rng.uniform(size / 4, 3 * size / 4, (count, 2, 1, 1))
    disc = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < (size / 4) ** 2
    images = rng.integers(0, 90, (count, size, size, 3)) + 150 * disc[..., None]
    return Split(
        images.astype(np.uint8),
        np.where(disc, 1, 2).astype(np.uint8),
        tuple(f"disc{i}" for i in range(count)),
    )


def start(model_config=SMALL, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    model, state = build(model_config, key=jax.random.key(0))
    return initialise(model, state, config, total_steps=100)


def train(fixed, train_state, split, steps):
    """Trains until step `steps`; returns the last state and every step's metrics."""
    metrics = []
    last = train_state
    for last, step_metrics in fit(fixed, train_state, split, total_steps=steps):  # noqa: B007
        metrics.append(jax.device_get(step_metrics))
    return last, metrics


def copies(tree):
    return jax.tree.map(np.array, eqx.filter(tree, eqx.is_array))


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_a_frozen_encoder_is_bit_identical_after_20_steps_and_the_decoder_moves(clip_norm):
    fixed, train_state = start(ModelConfig(encoder="resnet10"), clip_norm=clip_norm)
    before = copies(fixed.model(train_state))
    train_state, _ = train(fixed, train_state, arrays(size=32), 20)
    after = copies(fixed.model(train_state))
    for old, new in zip(*map(jax.tree.leaves, (before.encoder, after.encoder)), strict=True):
        assert old.tobytes() == new.tobytes()
    for old, new in zip(*map(jax.tree.leaves, (before.decoder, after.decoder)), strict=True):
        assert (old != new).any()


def test_frozen_leaves_have_no_optimiser_state_and_no_share_in_the_gradient_norm():
    fixed, train_state = start(ModelConfig(encoder="resnet10"))
    assert not jax.tree.leaves(train_state.trainable.encoder)
    trained = sum(leaf.size for leaf in jax.tree.leaves(train_state.trainable))
    moments = [leaf.size for leaf in jax.tree.leaves(train_state.opt_state) if leaf.ndim]
    assert moments == [trained, trained]


@pytest.mark.slow
def test_an_unfrozen_encoder_moves_by_its_own_learning_rate():
    moved = {}
    for scale in (1.0, 0.1):
        fixed, train_state = start(
            ModelConfig(encoder="resnet10"), freeze_encoder=False, encoder_lr_scale=scale
        )
        before = copies(fixed.model(train_state))
        train_state, _ = train(fixed, train_state, arrays(size=32), 1)
        after = copies(fixed.model(train_state))
        moved[scale] = after.encoder.conv_init.kernel - before.encoder.conv_init.kernel
    np.testing.assert_allclose(moved[0.1], 0.1 * moved[1.0], atol=1e-7)
    assert np.abs(moved[1.0]).max() > 1e-3


def test_every_leaf_and_the_statistics_move():
    fixed, train_state = start()
    before = copies((train_state.trainable, train_state.state))
    train_state, _ = train(fixed, train_state, arrays(), 3)
    after = copies((train_state.trainable, train_state.state))
    for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        assert (old != new).any()


def test_one_batch_can_be_learnt_by_heart():
    fixed, train_state = start(augment=False, weight_decay=0.0)
    _, metrics = train(fixed, train_state, arrays(count=4), 150)
    assert metrics[0].loss > 0.8
    assert metrics[-1].loss < 0.1
    assert metrics[-1].iou > 0.95


def part(split):
    return (
        to_float(split.images),
        jnp.asarray(split.labels == 1),
        jnp.ones(split.labels.shape, bool),
    )


def test_accumulated_gradients_are_the_mean_of_the_parts():
    fixed, train_state = start(batch_size=6, accumulate=3)
    batch = part(arrays(6))
    gradient, loss, state, logits = eqx.filter_jit(batch_gradient)(
        fixed, train_state.trainable, train_state.state, batch
    )
    assert logits.shape == (6, 16, 16)
    want_state, gradients, losses = train_state.state, [], []
    for i in range(0, 6, 2):
        images, mask, counted = (x[i : i + 2] for x in batch)
        (one, (want_state, _)), grad = eqx.filter_value_and_grad(batch_loss, has_aux=True)(
            fixed.model(train_state), want_state, images, mask, counted
        )
        gradients.append(grad)
        losses.append(one)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-6)
    want = jax.tree.map(lambda *parts: sum(parts) / 3, *gradients)
    for a, b in zip(*map(jax.tree.leaves, ((gradient, state), (want, want_state))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 + 1e-5 * np.abs(b).max())


def test_accumulating_takes_less_memory():
    def temporary_bytes(accumulate):
        fixed, train_state = start(batch_size=8, accumulate=accumulate)
        batch = Batch(np.zeros((8, 64, 64, 3), np.uint8), np.ones((8, 64, 64), np.uint8))
        step = compile_step((fixed, batch), train_state)
        return step.compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4) < 0.5 * temporary_bytes(1)


@pytest.mark.parametrize("accumulate", [0, 3])
def test_a_batch_that_does_not_divide_is_refused(accumulate):
    with pytest.raises(InputError, match="--accumulate"):
        TrainConfig(batch_size=16, accumulate=accumulate)


def test_rematerialising_keeps_less_and_changes_nothing():
    results, kept = [], []
    for remat in (False, True):
        fixed, train_state = start(remat=remat)
        batch = part(arrays(4))

        def loss(trainable, fixed=fixed, state=train_state.state, batch=batch, remat=remat):
            return batch_loss(eqx.combine(trainable, fixed.frozen), state, *batch, remat=remat)[0]

        arguments = fixed, train_state.trainable, train_state.state, batch
        results.append(eqx.filter_jit(batch_gradient)(*arguments))
        pullback = jax.eval_shape(lambda t, loss=loss: jax.vjp(loss, t)[1], train_state.trainable)
        kept.append(sum(leaf.size for leaf in jax.tree.leaves(pullback)))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 + 1e-5 * np.abs(b).max())
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.parametrize("encoder", ["scratch", "resnet10"])
def test_the_step_lowers_for_cuda_without_anything_of_the_cpu(encoder):
    model_config = SMALL if encoder == "scratch" else ModelConfig(encoder="resnet10")
    fixed, train_state = start(model_config, precision="bfloat16")
    split = arrays(4, size=32)
    arguments = (fixed, Batch(split.images, split.labels)), train_state
    dynamic, static = eqx.partition(
        arguments, lambda x: eqx.is_array(x) or isinstance(x, np.ndarray)
    )

    def step(dynamic):
        return eqx.filter(train_step.__wrapped__(*eqx.combine(dynamic, static)), eqx.is_array)

    text = jax.export.export(jax.jit(step), platforms=["cuda"])(dynamic).mlir_module()
    assert text.count("stablehlo.convolution") > 20
    assert "@eqxunet_" not in text and "callback" not in text


def test_a_step_is_traced_once():
    fixed, train_state = start()
    traced = eqx.debug.assert_max_traces(train_step.__wrapped__, max_traces=1)
    step = eqx.filter_jit(traced)
    split = arrays()
    batch = Batch(split.images[:4], split.labels[:4])
    for _ in range(3):
        train_state, _ = step((fixed, batch), train_state)


def test_a_batch_that_is_not_finite_changes_nothing_but_the_counts():
    fixed, train_state = start()
    split = arrays()
    batch = Batch(split.images[:4], split.labels[:4])
    train_state, metrics = train_step((fixed, batch), train_state)
    assert metrics.skipped == 0

    broken = eqx.tree_at(
        lambda s: s.trainable.head.bias, train_state, jnp.array([jnp.inf], jnp.float32)
    )
    before = copies((broken.trainable, broken.state, broken.opt_state))
    for skipped in (1, 2):
        broken, metrics = train_step((fixed, batch), broken)
        assert metrics.skipped == skipped
        assert not np.isfinite(metrics.loss)
    assert broken.step == 3
    after = copies((broken.trainable, broken.state, broken.opt_state))
    for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        assert old.tobytes() == new.tobytes()

    mended = eqx.tree_at(lambda s: s.trainable.head.bias, broken, jnp.zeros(1))
    mended, metrics = train_step((fixed, batch), mended)
    assert metrics.skipped == 0


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_resumed_run_equals_the_uninterrupted_one(stop):
    """Two steps an epoch: stops fall into an epoch and between two."""
    split = arrays()
    whole, _ = train(*start(), split, 5)
    first, _ = train(*start(), split, stop)
    saved = {name: np.array(leaf) for name, leaf in to_arrays(start()[0], first).items()}
    fixed, resumed = from_arrays(*start(seed=CONFIG.seed), saved)
    resumed, _ = train(fixed, resumed, split, 5)
    for old, new in zip(*(jax.tree.leaves(copies(s)) for s in (whole, resumed)), strict=True):
        assert old.tobytes() == new.tobytes()


def test_seeds_differ_and_repeat():
    runs = [train(*start(seed=seed), arrays(), 2)[1][-1].loss for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_arrays_of_another_run_are_refused():
    fixed, train_state = start()
    saved = {name: np.array(leaf) for name, leaf in to_arrays(fixed, train_state).items()}
    other = start(ModelConfig(channels=(4, 8)))
    with pytest.raises(IntegrityError, match="not of this run"):
        from_arrays(*other, saved)
    saved["model.head.bias"] = np.zeros(1, np.float64)
    with pytest.raises(IntegrityError, match="head.bias is float64"):
        from_arrays(fixed, train_state, saved)


def test_border_policies_train_differently():
    split = arrays()
    trimaps = split.labels.copy()
    trimaps[:, :4] = 3
    split = dataclasses.replace(split, labels=trimaps)
    losses = {
        border: train(*start(border=border, augment=False), split, 1)[1][0].loss.item()
        for border in ("foreground", "background", "ignore")
    }
    assert len(set(losses.values())) == 3


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    fixed, train_state = start(precision="bfloat16", augment=False)
    train_state, metrics = train(fixed, train_state, arrays(), 2)
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(train_state))
    _, exact = train(*start(augment=False), arrays(), 2)
    assert metrics[0].loss == pytest.approx(exact[0].loss, rel=2e-2)
    assert metrics[0].loss != exact[0].loss


def test_schedule_warms_up_and_falls_to_zero():
    schedule = learning_rate(TrainConfig(lr=1.0, schedule="cosine", warmup=0.1), 100)
    rates = [float(schedule(step)) for step in range(101)]
    assert rates[0] == 0 and rates[10] == 1 and rates[100] == pytest.approx(0, abs=1e-6)
    assert all(a < b for a, b in itertools.pairwise(rates[:11]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
