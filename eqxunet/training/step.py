"""The one compiled step of training."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from ..config import TrainConfig
from ..data.augment import augment, to_float
from ..data.batches import Batch
from ..models import UNet, batched
from ..ops import is_convolution
from ..tasks import AbstractTask, confusion_matrix
from .average import moving_average
from .optimizer import is_encoder_frozen, keeps_statistics, make_optimizer, trainable_mask

_AUGMENT = 1  # purpose of a derived key


class TrainState(eqx.Module):
    """All that a step changes.

    - `trainable`: the model's trained leaves, None elsewhere.
    - `state`: BatchNorm's running statistics.
    - `opt_state`: the optimiser's state, for the trained leaves only.
    - `average`: the moving average of the trained leaves, or None.
    - `step`: steps done; every random key and every batch derive from it.
    - `skipped`: the latest steps in a row that were skipped as not finite.
    """

    trainable: PyTree
    state: eqx.nn.State
    opt_state: PyTree
    average: PyTree
    step: Int[Array, ""]
    skipped: Int[Array, ""]


class Trainer(eqx.Module):
    """All that a step reads and keeps: frozen leaves, the task, and how to train.

    The optimiser is made anew from plain values while tracing, so that equal configurations share
    one compiled step. What one sweeps, seed and learning rate, are arrays, so that it is shared
    among those too.

    - `frozen`: the model's frozen leaves, None elsewhere.
    - `seed`, `lr`: in place of those of `config`, which say nothing.
    - `total_steps`: at which the schedule ends.
    """

    frozen: PyTree
    seed: Int[Array, ""]
    lr: Float[Array, ""]
    task: AbstractTask
    config: TrainConfig = eqx.field(static=True)
    total_steps: int = eqx.field(static=True)

    def model(self, train_state: TrainState) -> UNet:
        """The whole model as it is to be used: with the average of its weights, if there is one."""
        average = train_state.average
        return eqx.combine(train_state.trainable if average is None else average, self.frozen)

    def optimizer(self, trainable: PyTree) -> optax.GradientTransformation:
        """The optimiser of the trained leaves."""
        return make_optimizer(trainable, self.config, self.lr, self.total_steps)


class StepMetrics(NamedTuple):
    """Of one step, on the device; `skipped` counts non-finite steps in a row."""

    loss: Float[Array, ""]
    iou: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    skipped: Int[Array, ""]


Prepared = tuple[Float[Array, "b h w c"], UInt8[Array, "b h w"]]
"""Images in [0, 1] and the class of each pixel."""


def initialise(
    model: UNet, state: eqx.nn.State, config: TrainConfig, task: AbstractTask, total_steps: int
) -> tuple[Trainer, TrainState]:
    """Splits a model into what is trained and what stays, with a fresh optimiser.

    An encoder that is frozen, or whose BatchNorm keeps its statistics, is in inference mode from
    here on.
    """
    if is_encoder_frozen(model, config) or keeps_statistics(model, config):
        # The mask alone would let the statistics move.
        encoder = eqx.nn.inference_mode(model.encoder)
        model = eqx.tree_at(lambda model: model.encoder, model, encoder)
    trainable, frozen = eqx.partition(model, trainable_mask(model, config))
    with np.errstate(over="ignore"):  # the first step finds what that leads to
        lr = jnp.asarray(config.lr, jnp.float32)
    trainer = Trainer(
        frozen,
        jnp.asarray(config.seed, jnp.int32),
        lr,
        task,
        dataclasses.replace(config, seed=0, lr=1.0),
        total_steps,
    )
    opt_state = trainer.optimizer(trainable).init(trainable)
    average = trainable if config.ema else None
    zero = jnp.zeros((), jnp.int32)
    # The step donates its buffers, so it must own them.
    train_state = TrainState(trainable, state, opt_state, average, zero, zero)
    return trainer, jax.tree.map(jnp.copy, train_state)


def batch_loss(
    model: UNet,
    state: eqx.nn.State,
    images: Float[Array, "b h w c"],
    targets: UInt8[Array, "b h w"],
    task: AbstractTask,
    *,
    remat: bool = False,
) -> tuple[Float[Array, ""], tuple[eqx.nn.State, Float[Array, "b h w k"]]]:
    """Mean loss over images; also the new state and the logits.

    Arguments:

    - `targets`: as the task makes them of labels.
    - `remat`: keep the outputs of convolutions only for the gradient.
    """
    forward = batched(model)
    if remat:
        forward = jax.checkpoint(forward, policy=is_convolution)
    logits, state = forward(images, state)
    return jnp.mean(jax.vmap(task.loss)(logits, targets)), (state, logits)


def batch_gradient(
    trainer: Trainer, trainable: PyTree, state: eqx.nn.State, batch: Prepared
) -> tuple[PyTree, Float[Array, ""], eqx.nn.State, Float[Array, "b h w k"]]:
    """Gradient in the trained leaves of a batch's mean loss; the loss, new state, and logits.

    Computed in `config.accumulate` parts, each of which starts at the statistics of the one before.
    """
    config = trainer.config

    def loss_fn(trainable: PyTree, state: eqx.nn.State, part: Prepared):
        model = eqx.combine(trainable, trainer.frozen)
        images, targets = part
        images = images.astype(config.precision)
        return batch_loss(model, state, images, targets, trainer.task, remat=config.remat)

    value_and_grad = eqx.filter_value_and_grad(loss_fn, has_aux=True)
    if config.accumulate == 1:
        (loss, (state, logits)), gradient = value_and_grad(trainable, state, batch)
        return gradient, loss, state, logits

    def add(carry: tuple[PyTree, eqx.nn.State], part: Prepared):
        total, state = carry
        (loss, (state, logits)), gradient = value_and_grad(trainable, state, part)
        return (jax.tree.map(jnp.add, total, gradient), state), (loss, logits)

    parts = jax.tree.map(lambda x: x.reshape(config.accumulate, -1, *x.shape[1:]), batch)
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    (total, state), (losses, logits) = jax.lax.scan(add, (zeros, state), parts)
    gradient = jax.tree.map(lambda x: x / config.accumulate, total)
    return gradient, jnp.mean(losses), state, logits.reshape(-1, *logits.shape[2:])


@eqx.filter_jit(donate="all-except-first")
def train_step(
    inputs: tuple[Trainer, Batch], train_state: TrainState
) -> tuple[TrainState, StepMetrics]:
    """One update. `inputs` is kept, `train_state` is donated: use only the returned one.

    Where the loss, the gradient's norm, the update or BatchNorm's statistics are not finite, or too
    large to be squared, the step changes nothing but its counts. A finite gradient's moments are
    finite.
    """
    trainer, batch = inputs
    task = trainer.task
    images, labels = prepare(trainer, batch, train_state.step)
    targets = jnp.asarray(task.targets(labels))
    gradient, loss, state, logits = batch_gradient(
        trainer, train_state.trainable, train_state.state, (images, targets)
    )
    norm = jnp.linalg.norm(ravel_pytree(gradient)[0])
    updates, opt_state = trainer.optimizer(gradient).update(
        gradient, train_state.opt_state, train_state.trainable
    )
    trainable = eqx.apply_updates(train_state.trainable, updates)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & _is_finite((updates, state))
    kept = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (trainable, state, opt_state),
        (train_state.trainable, train_state.state, train_state.opt_state),
    )
    skipped = jnp.where(finite, 0, train_state.skipped + 1)
    iou = jnp.mean(
        jax.vmap(
            lambda logits, target: task.score(
                "iou", confusion_matrix(task.prediction(logits), target, len(task.classes))
            )
        )(logits, targets)
    )
    trainable, state, opt_state = kept
    # Reads what was kept: in a `where`, XLA would compute Adam's update for it a second time.
    average = jax.lax.cond(
        finite,
        lambda: moving_average(train_state.average, trainable, train_state.step),
        lambda: train_state.average,
    )
    train_state = TrainState(trainable, state, opt_state, average, train_state.step + 1, skipped)
    return train_state, StepMetrics(loss, iou, norm, skipped)


def _is_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether all numbers of a tree are finite, and small enough to be squared and summed."""
    vector, _ = ravel_pytree(eqx.filter(tree, eqx.is_inexact_array))
    # On CPUs a product is a library's, where XLA's sum is one number after another.
    return jnp.isfinite(jnp.vdot(vector, vector))


def prepare(
    trainer: Trainer, batch: Batch, step: Int[Array, ""]
) -> tuple[Float[Array, "b h w c"], UInt8[Array | np.ndarray, "b h w"]]:
    """A batch's images in [0, 1] and its labels, augmented where the configuration says so."""
    if not trainer.config.augment:
        return to_float(batch.images), jnp.asarray(batch.labels)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(trainer.seed), _AUGMENT), step)
    keys = jax.random.split(key, batch.images.shape[0])
    return jax.vmap(lambda image, labels, key: augment(image, labels, key=key))(
        batch.images, batch.labels, keys
    )
