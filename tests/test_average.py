"""The moving average of the weights: what it is, and that it is what everybody uses."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from test_training import arrays, copies, train
from test_training import start as start_with

import eqxunet as eu
from eqxunet.data.batches import Batch
from eqxunet.evaluation import score
from eqxunet.models.leaves import named_leaves
from eqxunet.training import fit, train_step, with_precise_statistics
from eqxunet.training.arrays import from_arrays, to_arrays
from eqxunet.training.average import moving_average
from eqxunet.training.checkpoint import restore


def start(**changes):
    return start_with(**{"ema": True} | changes)


def test_it_is_the_recurrence_over_the_weights_of_every_step():
    trainer, train_state = start()
    want = [np.array(leaf, np.float64) for leaf in jax.tree.leaves(train_state.trainable)]
    states = fit(trainer, train_state, arrays(), until=6)
    for step, (train_state, _) in enumerate(states):
        decay = (1 + step) / (10 + step)
        latest = map(np.array, jax.tree.leaves(train_state.trainable))
        want = [decay * old + (1 - decay) * new for old, new in zip(want, latest, strict=True)]
    for got, leaf in zip(jax.tree.leaves(train_state.average), want, strict=True):
        parity.assert_close(got, leaf, 1e-6)


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (90, 0.91), (890, 0.99), (10**6, 0.999)])
def test_its_memory_grows_with_the_run_up_to_a_thousand_steps(step, decay):
    got = moving_average(jnp.ones(2), jnp.zeros(2), jnp.asarray(step))
    np.testing.assert_allclose(got, decay, rtol=1e-6)


def test_a_skipped_step_leaves_it_alone():
    trainer, train_state = start()
    train_state, _ = train(trainer, train_state, arrays(), 2)
    before = copies(train_state.average)
    broken = eqx.tree_at(lambda s: s.trainable.head.bias, train_state, jnp.full(1, jnp.nan))
    split = arrays()
    broken, metrics = train_step((trainer, Batch(split.images[:4], split.labels[:4])), broken)
    assert metrics.skipped == 1
    for old, new in zip(*map(jax.tree.leaves, (before, broken.average)), strict=True):
        assert old.tobytes() == np.asarray(new).tobytes()


def test_it_has_no_part_in_training():
    with_it, _ = train(*start(), arrays(), 3)
    without, _ = train(*start(ema=False), arrays(), 3)
    assert without.average is None
    assert eqx.tree_equal(with_it.trainable, without.trainable)
    assert eqx.tree_equal(with_it.state, without.state)


def test_it_stays_in_float32():
    train_state, _ = train(*start(precision="bfloat16"), arrays(), 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(train_state.average)} == {jnp.dtype("float32")}


def test_statistics_are_taken_for_it():
    """Not for the latest weights, from which it is far here."""
    trainer, train_state = start(augment=False)
    train_state, _ = train(trainer, train_state, arrays(8), 2)  # an epoch
    far = jax.tree.map(lambda leaf: 2 * leaf, train_state.average)
    train_state = dataclasses.replace(train_state, average=far)
    got = with_precise_statistics(trainer, train_state, arrays(8)).state
    images = jnp.asarray(arrays(8).images) / 255
    first = trainer.model(train_state).encoder.levels[0]
    assert first.conv1.kernel is far.encoder.levels[0].conv1.kernel
    x = jax.vmap(first.conv1)(images)
    parity.assert_close(got.get(first.norm1.running)["mean"], np.mean(x, (0, 1, 2)), 1e-5)


def test_a_checkpoint_holds_it_as_the_model_and_the_latest_weights_beside_it():
    trainer, train_state = start()
    train_state, _ = train(trainer, train_state, arrays(), 2)
    saved = {name: np.array(leaf) for name, leaf in to_arrays(trainer, train_state).items()}
    for name, leaf in named_leaves(train_state.average).items():
        assert saved[f"model.{name}"].tobytes() == np.asarray(leaf).tobytes()
    for name, leaf in named_leaves(train_state.trainable).items():
        assert saved[f"trained.{name}"].tobytes() == np.asarray(leaf).tobytes()
    _, resumed = from_arrays(*start(), saved)
    assert eqx.tree_equal(resumed, train_state)


def test_without_one_a_checkpoint_is_what_it_was():
    trainer, train_state = start(ema=False)
    saved = to_arrays(trainer, train_state)
    parts = {name.split(".")[0] for name in saved}
    assert parts == {"model", "state", "optimizer", "counts"}
    with pytest.raises(eu.errors.IntegrityError, match="unknown .*trained"):
        from_arrays(trainer, train_state, copies(to_arrays(*start())))


CONFIG = eu.RunConfig(
    model=eu.ModelConfig(channels=(4, 8), size=32),
    train=eu.TrainConfig(epochs=2, batch_size=4, lr=1e-2, ema=True),
    data="synthetic",
    limit=12,
)


def test_it_is_what_a_run_validates_and_loads(tmp_path):
    run = eu.train(CONFIG, tmp_path / "a")
    saved = restore(tmp_path / "a" / "checkpoints", "best").arrays
    kernel = np.asarray(run.model.head.kernel)
    assert kernel.tobytes() == saved["model.head.kernel"].tobytes()
    assert kernel.tobytes() != saved["trained.head.kernel"].tobytes()
    split = eu.load_split("synthetic", "val", size=32, limit=12)
    metrics = tmp_path / "a" / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    best = max(record["val/iou"] for record in records)
    assert score(run.predictor(), split).iou.mean() == pytest.approx(best, abs=1e-12)


def test_a_run_from_before_there_was_one_goes_on_without(tmp_path):
    without = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, ema=False))
    eu.train(without, tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    values = json.loads(path.read_text())
    del values["train"]["ema"], values["train"]["unfreeze_after"]
    path.write_text(json.dumps(values))
    assert eu.load_run(tmp_path / "a").config.train.ema is False
    longer = dataclasses.replace(without, train=dataclasses.replace(without.train, epochs=3))
    run = eu.train(longer, tmp_path / "a", resume=True)
    assert not any(
        name.startswith("trained.") for name in restore(tmp_path / "a" / "checkpoints").arrays
    )
    assert not run.config.train.ema
