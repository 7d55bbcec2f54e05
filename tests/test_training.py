"""The compiled step: what moves, what must not, and that a run can be repeated bit for bit."""

import dataclasses
import itertools
from typing import ClassVar

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
from eqxunet.models import AbstractEncoder, PlainEncoder, UNet, batched
from eqxunet.tasks import Binary
from eqxunet.training import (
    fit,
    initialise,
    learning_rate,
    train_step,
    with_precise_statistics,
)
from eqxunet.training.arrays import from_arrays, to_arrays
from eqxunet.training.loop import compile_step
from eqxunet.training.step import batch_gradient, batch_loss

SMALL = ModelConfig(channels=(4, 6, 8))
BINARY = Binary("trimap")
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
    return initialise(model, state, config, Binary("trimap", config.border), total_steps=100)


def train(trainer, train_state, split, until):
    """Trains until step `until`; returns the last state and every step's metrics."""
    metrics = []
    last = train_state
    for last, step_metrics in fit(trainer, train_state, split, until=until):  # noqa: B007
        metrics.append(jax.device_get(step_metrics))
    return last, metrics


def copies(tree):
    return jax.tree.map(np.array, eqx.filter(tree, eqx.is_array))


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_a_frozen_encoder_is_bit_identical_after_20_steps_and_the_decoder_moves(clip_norm):
    trainer, train_state = start(ModelConfig(encoder="resnet10"), clip_norm=clip_norm)
    before = copies(trainer.model(train_state))
    train_state, _ = train(trainer, train_state, arrays(size=32), 20)
    after = copies(trainer.model(train_state))
    for old, new in zip(*map(jax.tree.leaves, (before.encoder, after.encoder)), strict=True):
        assert old.tobytes() == new.tobytes()
    for old, new in zip(*map(jax.tree.leaves, (before.decoder, after.decoder)), strict=True):
        assert (old != new).any()


def test_frozen_leaves_have_no_optimiser_state_and_no_share_in_the_gradient_norm():
    trainer, train_state = start(ModelConfig(encoder="resnet10"))
    assert not jax.tree.leaves(train_state.trainable.encoder)
    trained = sum(leaf.size for leaf in jax.tree.leaves(train_state.trainable))
    moments = [leaf.size for leaf in jax.tree.leaves(train_state.opt_state) if leaf.ndim]
    assert moments == [trained, trained]


class Pretrained(AbstractEncoder):
    """A plain encoder, with its BatchNorm, as if weights existed for it."""

    plain: PlainEncoder
    in_channels: ClassVar[int] = 3
    channels: ClassVar[tuple[int, ...]] = (4, 6)
    strides: ClassVar[tuple[int, ...]] = (1, 2)
    has_pretrained_weights: ClassVar[bool] = True

    def __call__(self, image, state):
        return self.plain(image, state)


class Tuned(Pretrained):
    is_tuned: ClassVar[bool] = True


def start_pretrained(kind=Pretrained, **changes):
    def make():
        encoder_key, key = jax.random.split(jax.random.key(0))
        encoder = kind(PlainEncoder(3, (4, 6), key=encoder_key))
        return UNet(encoder, size=16, key=key)

    model, state = eqx.nn.make_with_state(make)()
    _, state = batched(model)(part(arrays(4))[0], state)  # statistics unlike the initial ones
    return model, initialise(model, state, dataclasses.replace(CONFIG, **changes), BINARY, 100)


def test_a_frozen_encoders_batch_norm_keeps_its_statistics():
    _, (trainer, train_state) = start_pretrained()
    before = copies(to_arrays(trainer, train_state))
    train_state, _ = train(trainer, train_state, arrays(), 3)
    train_state = with_precise_statistics(trainer, train_state, arrays())
    after = copies(to_arrays(trainer, train_state))
    moved = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    kept = {name for name in before if name.startswith(("model.encoder.", "state.encoder."))}
    assert len(kept) == 4 * 3 + 4 * 2  # of four convolutions and norms
    assert moved == before.keys() - kept - {"counts.skipped"}


def test_by_default_a_tuned_encoder_moves_at_a_tenth_and_keeps_its_statistics():
    def first_step(**changes):
        _, (trainer, train_state) = start_pretrained(Tuned, **changes)
        before = copies(to_arrays(trainer, train_state))
        train_state, _ = train(trainer, train_state, arrays(), 1)
        after = copies(to_arrays(trainer, train_state))
        return {
            name: after[name] - before[name]
            for name in before
            if name.startswith(("model.encoder.", "state.encoder."))
        }

    by_default, frozen, whole = (
        first_step(**changes)
        for changes in ({}, {"freeze_encoder": True}, {"keep_statistics": False})
    )
    for name in by_default:
        is_weight = name.startswith("model.")
        assert np.any(by_default[name]) == is_weight
        assert not np.any(frozen[name])
        assert np.any(whole[name])
    half = first_step(encoder_lr_scale=0.05)
    for name in filter(lambda name: name.startswith("model."), half):
        np.testing.assert_allclose(by_default[name], 2 * half[name], atol=1e-6)


def test_a_learning_rate_for_an_encoder_that_is_frozen_by_default_is_refused():
    with pytest.raises(InputError, match="Pretrained is by default; set freeze_encoder=False"):
        start_pretrained(encoder_lr_scale=0.5)
    start_pretrained(encoder_lr_scale=0.5, freeze_encoder=False)
    start_pretrained(encoder_lr_scale=0.5, unfreeze_after=2)


def test_a_frozen_encoder_computes_as_inference_does_and_an_unfrozen_one_does_not():
    images = part(arrays(4))[0]
    for freeze in (True, False):
        model, (trainer, train_state) = start_pretrained(
            freeze_encoder=freeze, keep_statistics=False
        )
        inference = eqx.nn.inference_mode(model.encoder)
        want, _ = jax.vmap(inference, (0, None), (0, None))(images, train_state.state)
        encoder = trainer.model(train_state).encoder
        forward = jax.vmap(encoder, (0, None), (0, None), axis_name="batch")
        got, _ = forward(images, train_state.state)
        assert eqx.tree_equal(got, want).item() == freeze


def test_a_frozen_encoder_with_batch_norm_goes_through_a_checkpoint():
    _, (trainer, train_state) = start_pretrained()
    train_state, _ = train(trainer, train_state, arrays(), 2)
    saved = {name: np.array(leaf) for name, leaf in to_arrays(trainer, train_state).items()}
    _, fresh = start_pretrained()
    again, resumed = from_arrays(*fresh, saved)
    assert eqx.tree_equal((again, resumed), (trainer, train_state))
    resumed, _ = train(again, resumed, arrays(), 4)
    whole, _ = train(trainer, train_state, arrays(), 4)
    assert eqx.tree_equal(resumed, whole)


def test_an_encoder_without_weights_has_no_learning_rate_of_its_own():
    with pytest.raises(InputError, match="encoder_lr_scale=0.1 .* PlainEncoder has none"):
        start(freeze_encoder=False, encoder_lr_scale=0.1)


@pytest.mark.slow
def test_an_unfrozen_encoder_moves_by_its_own_learning_rate():
    moved = {}
    for scale in (1.0, 0.1):
        trainer, train_state = start(
            ModelConfig(encoder="resnet10"), freeze_encoder=False, encoder_lr_scale=scale
        )
        before = copies(trainer.model(train_state))
        train_state, _ = train(trainer, train_state, arrays(size=32), 1)
        after = copies(trainer.model(train_state))
        moved[scale] = (
            after.encoder.resnet.conv_init.kernel - before.encoder.resnet.conv_init.kernel
        )
    np.testing.assert_allclose(moved[0.1], 0.1 * moved[1.0], atol=1e-7)
    assert np.abs(moved[1.0]).max() > 1e-3


def test_every_leaf_and_the_statistics_move():
    trainer, train_state = start()
    before = copies((train_state.trainable, train_state.state))
    train_state, _ = train(trainer, train_state, arrays(), 3)
    after = copies((train_state.trainable, train_state.state))
    for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        assert (old != new).any()


def test_one_batch_can_be_learnt_by_heart():
    trainer, train_state = start(augment=False, weight_decay=0.0)
    _, metrics = train(trainer, train_state, arrays(count=4), 150)
    assert metrics[0].loss > 0.8
    assert metrics[-1].loss < 0.1
    assert metrics[-1].iou > 0.95


def part(split):
    return (
        to_float(split.images),
        jnp.asarray(BINARY.targets(split.labels)),
    )


def test_accumulated_gradients_are_the_mean_of_the_parts():
    trainer, train_state = start(batch_size=6, accumulate=3)
    batch = part(arrays(6))
    gradient, loss, state, logits = eqx.filter_jit(batch_gradient)(
        trainer, train_state.trainable, train_state.state, batch
    )
    assert logits.shape == (6, 16, 16, 1)
    want_state, gradients, losses = train_state.state, [], []
    for i in range(0, 6, 2):
        images, targets = (x[i : i + 2] for x in batch)
        (one, (want_state, _)), grad = eqx.filter_value_and_grad(batch_loss, has_aux=True)(
            trainer.model(train_state), want_state, images, targets, trainer.task
        )
        gradients.append(grad)
        losses.append(one)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-6)
    want = jax.tree.map(lambda *parts: sum(parts) / 3, *gradients)
    for a, b in zip(*map(jax.tree.leaves, ((gradient, state), (want, want_state))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 + 1e-5 * np.abs(b).max())


def test_accumulating_takes_less_memory():
    def temporary_bytes(accumulate):
        trainer, train_state = start(batch_size=8, accumulate=accumulate)
        batch = Batch(np.zeros((8, 64, 64, 3), np.uint8), np.ones((8, 64, 64), np.uint8))
        step = compile_step((trainer, batch), train_state)
        return step.compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4) < 0.5 * temporary_bytes(1)


def test_rematerialising_keeps_less_and_changes_nothing():
    results, kept = [], []
    for remat in (False, True):
        trainer, train_state = start(remat=remat)
        batch = part(arrays(4))

        def loss(trainable, trainer=trainer, state=train_state.state, batch=batch, remat=remat):
            return batch_loss(
                eqx.combine(trainable, trainer.frozen), state, *batch, BINARY, remat=remat
            )[0]

        arguments = trainer, train_state.trainable, train_state.state, batch
        results.append(eqx.filter_jit(batch_gradient)(*arguments))
        pullback = jax.eval_shape(lambda t, loss=loss: jax.vjp(loss, t)[1], train_state.trainable)
        kept.append(sum(leaf.size for leaf in jax.tree.leaves(pullback)))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 + 1e-5 * np.abs(b).max())
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.parametrize("encoder", ["scratch", "resnet10"])
def test_the_step_lowers_for_cuda_without_anything_of_the_cpu(encoder):
    model_config = SMALL if encoder == "scratch" else ModelConfig(encoder="resnet10")
    trainer, train_state = start(model_config, precision="bfloat16")
    split = arrays(4, size=32)
    arguments = (trainer, Batch(split.images, split.labels)), train_state
    dynamic, static = eqx.partition(
        arguments, lambda x: eqx.is_array(x) or isinstance(x, np.ndarray)
    )

    def step(dynamic):
        return eqx.filter(train_step.__wrapped__(*eqx.combine(dynamic, static)), eqx.is_array)

    text = jax.export.export(jax.jit(step), platforms=["cuda"])(dynamic).mlir_module()
    assert text.count("stablehlo.convolution") > 20
    assert "@eqxunet_" not in text and "callback" not in text


def test_a_step_is_traced_once():
    trainer, train_state = start()
    traced = eqx.debug.assert_max_traces(train_step.__wrapped__, max_traces=1)
    step = eqx.filter_jit(traced)
    split = arrays()
    batch = Batch(split.images[:4], split.labels[:4])
    for _ in range(3):
        train_state, _ = step((trainer, batch), train_state)


def test_runs_of_another_seed_and_learning_rate_share_the_step():
    step = eqx.filter_jit(eqx.debug.assert_max_traces(train_step.__wrapped__, max_traces=1))
    split = arrays()
    batch = Batch(split.images[:4], split.labels[:4])
    losses, kernels = [], []
    for seed, lr in ((0, 1e-2), (1, 1e-2), (0, 3e-2)):
        trainer, train_state = start(seed=seed, lr=lr)
        train_state, metrics = step((trainer, batch), train_state)
        losses.append(float(metrics.loss))
        kernels.append(np.asarray(train_state.trainable.head.kernel))
    assert losses[0] == losses[2] != losses[1]  # the seed augments
    assert (kernels[0] != kernels[2]).any()


def test_the_gradient_norm_is_that_of_all_trained_leaves():
    trainer, train_state = start(augment=False)
    split = arrays(4)
    gradient, *_ = eqx.filter_jit(batch_gradient)(
        trainer, train_state.trainable, train_state.state, part(split)
    )
    squares = [
        np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(gradient)
    ]
    _, metrics = train_step((trainer, Batch(split.images, split.labels)), train_state)
    assert metrics.gradient_norm == pytest.approx(np.sqrt(sum(squares)), rel=1e-4)


def test_moments_are_saved_by_the_names_of_their_leaves():
    trainer, train_state = start()
    train_state, _ = train(trainer, train_state, arrays(), 2)
    saved = to_arrays(trainer, train_state)
    leaves = {name.removeprefix("model."): leaf for name, leaf in saved.items() if "model." in name}
    moments = [name for name in saved if name.startswith("optimizer.") and saved[name].ndim]
    assert len(moments) == 2 * len(leaves)
    for name, leaf in leaves.items():
        own = [moment for moment in moments if moment.endswith(f".{name}")]
        assert [saved[moment].shape for moment in own] == [leaf.shape] * 2
        assert all((np.asarray(saved[moment]) != 0).any() for moment in own)


def test_a_batch_that_is_not_finite_changes_nothing_but_the_counts():
    trainer, train_state = start()
    split = arrays()
    batch = Batch(split.images[:4], split.labels[:4])
    train_state, metrics = train_step((trainer, batch), train_state)
    assert metrics.skipped == 0

    broken = eqx.tree_at(
        lambda s: s.trainable.head.bias, train_state, jnp.array([jnp.inf], jnp.float32)
    )
    before = copies((broken.trainable, broken.state, broken.opt_state))
    for skipped in (1, 2):
        broken, metrics = train_step((trainer, batch), broken)
        assert metrics.skipped == skipped
        assert not np.isfinite(metrics.loss)
    assert broken.step == 3
    after = copies((broken.trainable, broken.state, broken.opt_state))
    for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        assert old.tobytes() == new.tobytes()

    mended = eqx.tree_at(lambda s: s.trainable.head.bias, broken, jnp.zeros(1))
    mended, metrics = train_step((trainer, batch), mended)
    assert metrics.skipped == 0


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_resumed_run_equals_the_uninterrupted_one(stop):
    """Two steps an epoch: stops fall into an epoch and between two."""
    split = arrays()
    whole, _ = train(*start(), split, 5)
    first, _ = train(*start(), split, stop)
    saved = {name: np.array(leaf) for name, leaf in to_arrays(start()[0], first).items()}
    trainer, resumed = from_arrays(*start(seed=CONFIG.seed), saved)
    resumed, _ = train(trainer, resumed, split, 5)
    for old, new in zip(*(jax.tree.leaves(copies(s)) for s in (whole, resumed)), strict=True):
        assert old.tobytes() == new.tobytes()


def test_seeds_differ_and_repeat():
    runs = [train(*start(seed=seed), arrays(), 2)[1][-1].loss for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_arrays_of_another_run_are_refused():
    trainer, train_state = start()
    saved = {name: np.array(leaf) for name, leaf in to_arrays(trainer, train_state).items()}
    other = start(ModelConfig(channels=(4, 8)))
    with pytest.raises(IntegrityError, match="not of this run"):
        from_arrays(*other, saved)
    saved["model.head.bias"] = np.zeros(1, np.float64)
    with pytest.raises(IntegrityError, match="head.bias is float64"):
        from_arrays(trainer, train_state, saved)


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
    trainer, train_state = start(precision="bfloat16", augment=False)
    train_state, metrics = train(trainer, train_state, arrays(), 2)
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(train_state))
    _, exact = train(*start(augment=False), arrays(), 2)
    assert metrics[0].loss == pytest.approx(exact[0].loss, rel=2e-2)
    assert metrics[0].loss != exact[0].loss


def test_schedule_warms_up_and_falls_to_zero():
    schedule = learning_rate(TrainConfig(schedule="cosine", warmup=0.1), 1.0, 100)
    rates = [float(schedule(step)) for step in range(101)]
    assert rates[0] == 0 and rates[10] == 1 and rates[100] == pytest.approx(0, abs=1e-6)
    assert all(a < b for a, b in itertools.pairwise(rates[:11]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
