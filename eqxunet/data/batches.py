"""Batches of a decoded split: shuffled without end for training, in order for evaluation."""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from ..errors import InputError
from .split import Split


class Batch(NamedTuple):
    """Images in RGB and their labels."""

    images: UInt8[np.ndarray, "b h w 3"]
    labels: UInt8[np.ndarray, "b h w"]


def steps_per_epoch(arrays: Split, batch_size: int) -> int:
    """How many whole batches the split has.

    Raises InputError where it has none.
    """
    if batch_size < 1:
        raise InputError(f"the batch size must be at least 1, not {batch_size}")
    if len(arrays) < batch_size:
        raise InputError(
            f"{len(arrays)} training images do not fill a batch of {batch_size}; "
            f"set --batch-size {len(arrays)} or lower, or add images"
        )
    return len(arrays) // batch_size


def batches(arrays: Split, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
    """Yields the batches of steps `start`, `start + 1`, ... without end.

    Every epoch is a new permutation whose last, incomplete batch is dropped. A step's batch
    depends on `seed` and the step alone, so a run that resumes at `start` sees the same bytes.

    Raises InputError where the images don't fill one batch.
    """
    steps = steps_per_epoch(arrays, batch_size)

    def batch(step: int) -> Batch:
        epoch, position = divmod(step, steps)
        order = _order(len(arrays), seed, epoch)
        return _gather(arrays, order[position * batch_size : (position + 1) * batch_size])

    return map(batch, itertools.count(start))


def padded_batches(arrays: Split, batch_size: int) -> Iterator[tuple[Batch, int]]:
    """Yields all examples in order, with how many of each batch are real.

    The last batch repeats its last example up to `batch_size`, for one compiled shape.
    """
    for start in range(0, len(arrays), batch_size):
        index = np.arange(start, start + batch_size)
        count = min(batch_size, len(arrays) - start)
        yield _gather(arrays, np.minimum(index, len(arrays) - 1)), count


def _gather(arrays: Split, index: Int[np.ndarray, " b"]) -> Batch:
    return Batch(arrays.images[index], arrays.labels[index])


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Int[np.ndarray, " {count}"]:
    """A permutation of the examples, the same with every version of NumPy."""
    return np.argsort(np.random.Philox(key=(seed, epoch)).random_raw(count), kind="stable")
