"""Training: the one compiled step, and the loop that yields after each."""

import ctypes
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt8

from .config import TrainConfig
from .data.augment import augment, to_float
from .data.batches import Batch, Split, batches, steps_per_epoch
from .data.trimap import foreground
from .errors import IntegrityError
from .losses import segmentation_loss
from .metrics import count
from .models import AbstractUNet, batched, is_convolution
from .models.leaves import named_leaves, named_state, replace_leaves, replace_state, select
from .optimizer import make_optimizer, trainable_mask
from .statistics import precise_statistics

_AUGMENT = 1  # purpose of a derived key


class TrainState(eqx.Module):
    """All that a step changes.

    - `trainable`: the model's trained leaves, None elsewhere.
    - `state`: BatchNorm's running statistics.
    - `opt_state`: the optimiser's state, for the trained leaves only.
    - `step`: steps done; every random key and every batch derive from it.
    - `skipped`: the latest steps in a row that were skipped as not finite.
    """

    trainable: PyTree
    state: eqx.nn.State
    opt_state: PyTree
    step: Int[Array, ""]
    skipped: Int[Array, ""]


class Fixed(eqx.Module):
    """All that a step reads and keeps: the model's frozen leaves, None elsewhere, and how to train.

    The optimiser is made anew from plain values while tracing, so that equal configurations share
    one compiled step.
    """

    frozen: PyTree
    config: TrainConfig = eqx.field(static=True)
    total_steps: int = eqx.field(static=True)

    def model(self, train_state: TrainState) -> AbstractUNet:
        """The whole model."""
        return eqx.combine(train_state.trainable, self.frozen)

    def optimizer(self, trainable: PyTree) -> optax.GradientTransformation:
        """The optimiser of the trained leaves."""
        return make_optimizer(trainable, self.config, self.total_steps)


class StepMetrics(NamedTuple):
    """Of one step, on the device; `skipped` counts non-finite steps in a row."""

    loss: Float[Array, ""]
    iou: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    skipped: Int[Array, ""]


Step = Callable[[tuple[Fixed, Batch], TrainState], tuple[TrainState, StepMetrics]]


def initialise(
    model: AbstractUNet, state: eqx.nn.State, config: TrainConfig, total_steps: int
) -> tuple[Fixed, TrainState]:
    """Splits a model into what is trained and what stays, with a fresh optimiser."""
    trainable, frozen = eqx.partition(model, trainable_mask(model, config))
    fixed = Fixed(frozen, config, total_steps)
    opt_state = fixed.optimizer(trainable).init(trainable)
    zero = jnp.zeros((), jnp.int32)
    # The step donates its buffers, so it must own them.
    train_state = TrainState(trainable, state, opt_state, zero, zero)
    return fixed, jax.tree.map(jnp.copy, train_state)


def batch_loss(
    model: AbstractUNet,
    state: eqx.nn.State,
    images: Float[Array, "b h w 3"],
    mask: Bool[Array, "b h w"],
    counted: Bool[Array, "b h w"],
    *,
    remat: bool = False,
) -> tuple[Float[Array, ""], tuple[eqx.nn.State, Float[Array, "b h w"]]]:
    """Mean loss over images; also the new state and the logits.

    Arguments:

    - `remat`: keep the outputs of convolutions only for the gradient.
    """
    forward = batched(model)
    if remat:
        forward = jax.checkpoint(forward, policy=is_convolution)
    logits, state = forward(images, state)
    logits = logits[..., 0]
    return jnp.mean(jax.vmap(segmentation_loss)(logits, mask, counted)), (state, logits)


Part = tuple[Float[Array, "b h w 3"], Bool[Array, "b h w"], Bool[Array, "b h w"]]


def batch_gradient(
    fixed: Fixed, trainable: PyTree, state: eqx.nn.State, batch: Part
) -> tuple[PyTree, Float[Array, ""], eqx.nn.State, Float[Array, "b h w"]]:
    """Gradient in the trained leaves of a batch's mean loss; the loss, new state, and logits.

    Computed in `config.accumulate` parts, each of which starts at the statistics of the one before.
    """
    config = fixed.config

    def loss_fn(trainable: PyTree, state: eqx.nn.State, part: Part):
        model = eqx.combine(trainable, fixed.frozen)
        images, mask, counted = part
        images = images.astype(config.precision)
        return batch_loss(model, state, images, mask, counted, remat=config.remat)

    value_and_grad = eqx.filter_value_and_grad(loss_fn, has_aux=True)
    if config.accumulate == 1:
        (loss, (state, logits)), gradient = value_and_grad(trainable, state, batch)
        return gradient, loss, state, logits

    def add(carry: tuple[PyTree, eqx.nn.State], part: Part):
        total, state = carry
        (loss, (state, logits)), gradient = value_and_grad(trainable, state, part)
        return (jax.tree.map(jnp.add, total, gradient), state), (loss, logits)

    parts = jax.tree.map(lambda x: x.reshape(config.accumulate, -1, *x.shape[1:]), batch)
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    (total, state), (losses, logits) = jax.lax.scan(add, (zeros, state), parts)
    gradient = jax.tree.map(lambda x: x / config.accumulate, total)
    return gradient, jnp.mean(losses), state, logits.reshape(batch[1].shape)


@eqx.filter_jit(donate="all-except-first")
def train_step(
    inputs: tuple[Fixed, Batch], train_state: TrainState
) -> tuple[TrainState, StepMetrics]:
    """One update. `inputs` is kept, `train_state` is donated: use only the returned one.

    Where the loss or the gradient's norm is not finite, the step changes nothing but its counts.
    """
    fixed, batch = inputs
    config = fixed.config
    images, trimaps = _prepare(batch, config, train_state.step)
    mask, counted = foreground(trimaps, config.border)
    gradient, loss, state, logits = batch_gradient(
        fixed, train_state.trainable, train_state.state, (images, mask, counted)
    )
    norm = jnp.linalg.norm(ravel_pytree(gradient)[0])
    updates, opt_state = fixed.optimizer(gradient).update(
        gradient, train_state.opt_state, train_state.trainable
    )
    trainable = eqx.apply_updates(train_state.trainable, updates)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    kept = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (trainable, state, opt_state),
        (train_state.trainable, train_state.state, train_state.opt_state),
    )
    skipped = jnp.where(finite, 0, train_state.skipped + 1)
    iou = jnp.mean(jax.vmap(count)(logits >= 0, mask, counted).iou)
    trainable, state, opt_state = kept
    train_state = TrainState(trainable, state, opt_state, train_state.step + 1, skipped)
    return train_state, StepMetrics(loss, iou, norm, skipped)


def compile_step(inputs: tuple[Fixed, Batch], train_state: TrainState) -> Step:
    """Compiles `train_step` ahead, for arrays of these shapes."""
    jitted: Any = train_step  # Equinox types it as the plain function
    # What was freed would be held beside what compiling and the first step take.
    _return_freed_memory()
    step = jitted.lower(inputs, train_state).compile()
    _return_freed_memory()
    return step


def _return_freed_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _prepare(
    batch: Batch, config: TrainConfig, step: Int[Array, ""]
) -> tuple[Float[Array, "b h w 3"], UInt8[Array, "b h w"]]:
    if not config.augment:
        return to_float(batch.images), jnp.asarray(batch.labels)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), _AUGMENT), step)
    keys = jax.random.split(key, batch.images.shape[0])
    return jax.vmap(lambda image, trimap, key: augment(image, trimap, key=key))(
        batch.images, batch.labels, keys
    )


@eqx.filter_jit
def _half_augmented(
    batch: Batch, config: TrainConfig, step: Int[Array, ""]
) -> Float[Array, "b h w 3"]:
    images, _ = _prepare(batch, config, step)
    is_plain = jnp.arange(images.shape[0]) % 2 == 0
    return jnp.where(is_plain[:, None, None, None], to_float(batch.images), images)


def fit(
    fixed: Fixed, train_state: TrainState, arrays: Split, *, total_steps: int
) -> Iterator[tuple[TrainState, StepMetrics]]:
    """Trains from `train_state.step` to `total_steps`, yielding after every step.

    A yielded state is donated to the next step: save or evaluate it before asking for more. The
    step that is yielded may still run, the one before it is done: so the device always has work,
    and whoever stops waits for one step.
    """
    config = fixed.config
    start = int(train_state.step)
    if start >= total_steps:
        return
    stream = batches(arrays, config.batch_size, seed=config.seed, start=start)
    batch = next(stream)
    step = compile_step((fixed, batch), train_state)
    before: StepMetrics | None = None
    for _ in range(start, total_steps):
        train_state, metrics = step((fixed, batch), train_state)
        batch = next(stream)  # ready before the device is
        jax.block_until_ready(before)
        before = metrics
        yield train_state, metrics


def with_precise_statistics(fixed: Fixed, train_state: TrainState, arrays: Split) -> TrainState:
    """Returns the state with BatchNorm's statistics for its weights, to validate and to save.

    They are taken over the batches of the steps to come: an eighth of an epoch, so that the forward
    pass costs a twentieth of its time or so, but 16 images at least where there are as many, and
    256 at most. Half of the images are as inference sees them, half as the weights saw them.
    """
    config, step = fixed.config, int(train_state.step)
    epoch_steps = steps_per_epoch(arrays, config.batch_size)
    least, most = -(-16 // config.batch_size), max(1, 256 // config.batch_size)
    count = min(max(epoch_steps // 8, least), epoch_steps, most)

    def parts() -> Iterator[Float[Array, "b h w 3"]]:
        stream = batches(arrays, config.batch_size, seed=config.seed, start=step)
        for later in range(step, step + count):
            images = _half_augmented(next(stream), config, jnp.asarray(later))
            yield from jnp.split(images, config.accumulate)

    state = precise_statistics(fixed.model(train_state), train_state.state, parts())
    return dataclasses.replace(train_state, state=state)


def to_arrays(fixed: Fixed, train_state: TrainState) -> dict[str, Shaped[Array, "..."]]:
    """Returns all that a run needs to go on, by name: model, statistics, optimiser, counts."""
    model = fixed.model(train_state)
    parts = {
        "model": named_leaves(model),
        "state": named_state(model, train_state.state),
        "optimizer": named_leaves(train_state.opt_state),
        "counts": {"step": train_state.step, "skipped": train_state.skipped},
    }
    return {
        f"{part}.{name}": leaf for part, leaves in parts.items() for name, leaf in leaves.items()
    }


def from_arrays(
    fixed: Fixed, train_state: TrainState, arrays: Mapping[str, Shaped[np.ndarray, "..."]]
) -> tuple[Fixed, TrainState]:
    """Returns both with the values that `to_arrays` named.

    Raises IntegrityError, listing the differences, where the arrays are of another run.
    """
    expected = to_arrays(fixed, train_state).keys()
    if expected != arrays.keys():
        missing, unknown = sorted(expected - arrays.keys()), sorted(arrays.keys() - expected)
        raise IntegrityError(
            f"The checkpoint is not of this run: missing {missing}, unknown {unknown}."
        )
    model = replace_leaves(fixed.model(train_state), select(arrays, "model"))
    state = replace_state(model, train_state.state, select(arrays, "state"))
    opt_state = replace_leaves(train_state.opt_state, select(arrays, "optimizer"))
    counts = {name: jnp.asarray(leaf) for name, leaf in select(arrays, "counts").items()}
    trainable, frozen = eqx.partition(model, trainable_mask(model, fixed.config))
    return dataclasses.replace(fixed, frozen=frozen), TrainState(
        trainable, state, opt_state, **counts
    )
