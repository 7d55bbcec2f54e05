"""An encoder that is frozen for some epochs and trained afterwards."""

import dataclasses
import json
from contextlib import contextmanager

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from test_training import CONFIG, Pretrained, arrays, copies, start, start_pretrained, train

import eqxunet as eu
from eqxunet.data.batches import batches
from eqxunet.errors import InputError
from eqxunet.models import PlainEncoder, encoders
from eqxunet.models.leaves import named_leaves, named_state
from eqxunet.training import fit, fit_in_phases, learning_rate, unfreeze
from eqxunet.training.arrays import from_arrays, to_arrays
from eqxunet.training.checkpoint import restore
from eqxunet.training.step import batch_gradient, prepare

BORDER = 4  # steps: two epochs of two


def begin(**changes):
    given = {"unfreeze_after": 2, "ema": True, "keep_statistics": False} | changes
    _, both = start_pretrained(**given)
    return both


def until(phases, step):
    """The trainer and the state after a step."""
    for trainer, train_state, _ in phases:
        if int(train_state.step) == step:
            return trainer, train_state
    raise AssertionError(f"ended before step {step}")


def encoder_of(trainer, train_state):
    model = trainer.model(train_state)
    state = named_state(model, train_state.state)
    return {
        **{name: np.array(leaf) for name, leaf in named_leaves(model.encoder).items()},
        **{name: np.array(leaf) for name, leaf in state.items() if name.startswith("encoder.")},
    }


def test_the_encoders_bits_stay_until_then_and_move_afterwards():
    trainer, train_state = begin()
    before = encoder_of(trainer, train_state)
    assert len(before) == 4 * 3 + 4 * 2  # of four convolutions and norms
    phases = fit_in_phases(trainer, train_state, arrays())
    for trainer, train_state, _ in phases:
        after = encoder_of(trainer, train_state)
        moved = {name for name in before if before[name].tobytes() != after[name].tobytes()}
        assert moved == (before.keys() if train_state.step > BORDER else set())
        if train_state.step == BORDER + 2:
            break


def test_by_default_its_statistics_stay_afterwards_too():
    trainer, train_state = begin(keep_statistics=None)
    before = encoder_of(trainer, train_state)
    after = encoder_of(*until(fit_in_phases(trainer, train_state, arrays()), BORDER + 2))
    moved = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert moved == {name for name in before if ".running." not in name}


def test_until_then_it_is_the_run_with_a_frozen_encoder_in_bits_and_in_size():
    _, (trainer, frozen) = start_pretrained(ema=True)
    first = begin()
    sizes = [[leaf.shape for leaf in jax.tree.leaves(state)] for state in (frozen, first[1])]
    assert sizes[0] == sizes[1]
    frozen, _ = train(trainer, frozen, arrays(), BORDER)
    _, train_state = until(fit_in_phases(*first, arrays()), BORDER)
    assert eqx.tree_equal(frozen, train_state)


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_the_first_step_with_it_is_adams_first_for_it_and_the_fifth_for_the_others(clip_norm):
    """By hand, with a decoder whose moments have gone on, one clipping norm, one schedule."""
    scale, decay = 0.5, CONFIG.weight_decay
    trainer, train_state = begin(encoder_lr_scale=scale, clip_norm=clip_norm, schedule="cosine")
    phases = fit_in_phases(trainer, train_state, arrays())
    trainer, train_state = until(phases, BORDER)
    moments = {
        name.split(".", 1)[1]: np.array(leaf, np.float64)
        for name, leaf in to_arrays(trainer, train_state).items()
        if name.startswith("optimizer.")
    }
    trainer, train_state = unfreeze(trainer, train_state)
    images, labels = prepare(
        trainer, next(batches(arrays(), 4, seed=0, start=BORDER)), train_state.step
    )
    gradient, *_ = eqx.filter_jit(batch_gradient)(
        trainer,
        train_state.trainable,
        train_state.state,
        (images, jnp.asarray(trainer.task.targets(labels))),
    )
    gradient = {name: np.array(leaf, np.float64) for name, leaf in named_leaves(gradient).items()}
    if clip_norm is not None:
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in gradient.values()))
        assert norm > clip_norm
        gradient = {name: leaf * clip_norm / norm for name, leaf in gradient.items()}
    before = {name: np.array(leaf, np.float64) for name, leaf in trained(train_state).items()}
    _, train_state = until(phases, BORDER + 1)
    rate = float(learning_rate(dataclasses.replace(CONFIG, schedule="cosine"), 1e-2, 100)(BORDER))
    for name, leaf in trained(train_state).items():
        g, is_new = gradient[name], name.startswith("encoder.")
        count = 1 if is_new else BORDER + 1
        m, v = (0.0, 0.0) if is_new else (of(moments, f"{which}.{name}") for which in ("mu", "nu"))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = m / (1 - 0.9**count) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
        step = rate * (scale if is_new else 1) * (step + decay * before[name])
        # Where a gradient is next to nothing, its rounding decides the first step's sign.
        clear = np.abs(g) > 1e-5 * np.abs(g).max()
        got = np.asarray(leaf, np.float64) - before[name]
        parity.assert_close(np.where(clear, got, 0), np.where(clear, -step, 0), 2e-3, name)


def trained(train_state):
    return named_leaves(train_state.trainable)


def of(moments, ending):
    (found,) = [leaf for name, leaf in moments.items() if name.endswith(ending)]
    return found


def test_its_average_starts_at_its_weights_and_the_others_goes_on():
    trainer, train_state = until(fit_in_phases(*begin(), arrays()), BORDER)
    before = copies(train_state.average)
    encoder = copies(eqx.filter(trainer.frozen.encoder, eqx.is_inexact_array))
    _, later = unfreeze(trainer, train_state)
    assert eqx.tree_equal(copies(later.average.decoder), before.decoder)
    assert eqx.tree_equal(copies(later.average.encoder), encoder)
    assert eqx.tree_equal(copies(later.trainable.encoder), encoder)


def test_unfreezing_uses_nothing_up():
    before = until(fit_in_phases(*begin(), arrays()), BORDER)
    kept = copies(before)
    next(fit(*unfreeze(*before), arrays()))  # donates what it gets
    assert eqx.tree_equal(copies(before), kept)


@pytest.mark.parametrize("stop", [BORDER - 1, BORDER, BORDER + 1])
def test_a_run_resumed_on_either_side_equals_the_uninterrupted_one(stop):
    phases = fit_in_phases(*begin(), arrays())
    trainer, train_state = until(phases, stop)
    saved = {name: np.array(leaf) for name, leaf in to_arrays(trainer, train_state).items()}
    _, whole = until(phases, BORDER + 3)
    resumed = from_arrays(*begin(), saved)
    _, again = until(fit_in_phases(*resumed, arrays()), BORDER + 3)
    for old, new in zip(*(jax.tree.leaves(copies(s)) for s in (whole, again)), strict=True):
        assert old.tobytes() == new.tobytes()


def test_moments_of_both_are_saved_by_the_names_of_their_leaves():
    trainer, train_state = until(fit_in_phases(*begin(), arrays()), BORDER + 1)
    saved = to_arrays(trainer, train_state)
    leaves = named_leaves(train_state.trainable)
    moments = [name for name in saved if name.startswith("optimizer.") and saved[name].ndim]
    assert len(moments) == 2 * len(leaves)
    for name, leaf in leaves.items():
        own = [moment for moment in moments if moment.endswith(f".{name}")]
        assert [saved[moment].shape for moment in own] == [leaf.shape] * 2


def test_a_run_that_ends_before_trains_no_encoder():
    trainer, train_state = begin(unfreeze_after=2)
    trainer = dataclasses.replace(trainer, total_steps=3)
    *_, (trainer, train_state, _) = fit_in_phases(trainer, train_state, arrays())
    assert train_state.step == 3 and not jax.tree.leaves(train_state.trainable.encoder)


def test_an_encoder_without_weights_is_not_frozen_to_begin_with():
    with pytest.raises(InputError, match="unfreeze_after=2 .* PlainEncoder has none"):
        start(unfreeze_after=2)
    with pytest.raises(InputError, match="--unfreeze-after 2: the scratch encoder .* leave it out"):
        eu.RunConfig(train=eu.TrainConfig(unfreeze_after=2))


@pytest.fixture
def small_resnet(monkeypatch):
    """A few plain layers in the place of SERL's ResNet."""

    def make(config, key):
        return Pretrained(PlainEncoder(3, (4, 6), key=key))

    monkeypatch.setitem(encoders.ENCODERS, "resnet10", make)


class Stopping(eu.Observer):
    """Stops after a step."""

    def __init__(self, last):
        self.last = last

    @contextmanager
    def steps(self, total, done):
        yield lambda step, text: "stop" if step == self.last else "go on"


def validations(directory):
    text = (directory / "metrics.jsonl").read_text()
    values = [json.loads(line) for line in text.splitlines()]
    return [(value["step"], value["val/loss"], value["val/iou"]) for value in values]


def test_a_run_is_stopped_and_resumed_on_both_sides_and_across(small_resnet, tmp_path):
    """Three steps an epoch: it stops before the border, at it, and after it."""
    config = eu.RunConfig(
        model=eu.ModelConfig(encoder="resnet10", size=32),
        train=eu.TrainConfig(
            epochs=4, batch_size=4, unfreeze_after=2, encoder_lr_scale=0.1, ema=True
        ),
        data="synthetic",
        weights="random",
        limit=12,
    )
    whole = eu.train(config, tmp_path / "whole")
    for last in (5, 6, 8, None):
        parts = eu.train(config, tmp_path / "parts", observer=Stopping(last), resume=last != 5)
        assert restore(tmp_path / "parts" / "checkpoints").step == (last or 12)
    assert validations(tmp_path / "parts") == validations(tmp_path / "whole")
    assert eqx.tree_equal(parts.model, whole.model) and parts.step == whole.step
