"""Step after step: batches in, states out, and the statistics that belong to them."""

import ctypes
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..data import Split
from ..data.augment import to_float
from ..data.batches import Batch, batches, steps_per_epoch
from .statistics import precise_statistics
from .step import StepMetrics, Trainer, TrainState, prepare, train_step

Step = Callable[[tuple[Trainer, Batch], TrainState], tuple[TrainState, StepMetrics]]


def fit(
    trainer: Trainer, train_state: TrainState, split: Split, *, until: int | None = None
) -> Iterator[tuple[TrainState, StepMetrics]]:
    """Trains from `train_state.step` to the end of the schedule, yielding after every step.

    A yielded state is donated to the next step: save or evaluate it before asking for more. The
    step that is yielded may still run, the one before it is done: so the device always has work,
    and whoever stops waits for one step. A frozen encoder stays frozen, until `unfreeze` is called.

    Arguments:

    - `until`: the step to end after instead.

    Raises InputError where the split's labels are not those that the task takes.
    """
    trainer.task.check(split.kind, split.classes)
    start, end = int(train_state.step), trainer.total_steps if until is None else until
    if start >= end:
        return
    stream = batches(split, trainer.config.batch_size, seed=int(trainer.seed), start=start)
    batch = next(stream)
    step = compile_step((trainer, batch), train_state)
    before: StepMetrics | None = None
    for _ in range(start, end):
        train_state, metrics = step((trainer, batch), train_state)
        batch = next(stream)  # ready before the device is
        jax.block_until_ready(before)
        before = metrics
        yield train_state, metrics


def compile_step(inputs: tuple[Trainer, Batch], train_state: TrainState) -> Step:
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


def with_precise_statistics(trainer: Trainer, train_state: TrainState, split: Split) -> TrainState:
    """Returns the state with BatchNorm's statistics for its weights, to validate and to save.

    They are taken over the batches of the steps to come: an eighth of an epoch, so that the forward
    pass costs a twentieth of its time or so, but 16 images at least where there are as many, and
    256 at most. Half of the images are as inference sees them, half as the weights saw them.
    """
    batch_size, step = trainer.config.batch_size, int(train_state.step)
    epoch_steps = steps_per_epoch(split, batch_size)
    least, most = -(-16 // batch_size), max(1, 256 // batch_size)
    count = min(max(epoch_steps // 8, least), epoch_steps, most)

    def parts() -> Iterator[Float[Array, "b h w c"]]:
        stream = batches(split, batch_size, seed=int(trainer.seed), start=step)
        for later in range(step, step + count):
            images = _half_augmented(trainer, next(stream), jnp.asarray(later))
            yield from jnp.split(images, trainer.config.accumulate)

    state = precise_statistics(trainer.model(train_state), train_state.state, parts())
    return dataclasses.replace(train_state, state=state)


@eqx.filter_jit
def _half_augmented(
    trainer: Trainer, batch: Batch, step: Int[Array, ""]
) -> Float[Array, "b h w c"]:
    images, _ = prepare(trainer, batch, step)
    is_plain = jnp.arange(images.shape[0]) % 2 == 0
    return jnp.where(is_plain[:, None, None, None], to_float(batch.images), images)
