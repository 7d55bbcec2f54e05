"""Batches of a split: shuffled without end for training, in order for evaluation."""

import functools
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from ..errors import InputError
from .split import Split
from .undecoded import Undecoded

_MOST_STEPS = 2**31  # of a run


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

    def index(step: int) -> Int[np.ndarray, " b"]:
        epoch, position = divmod(step, steps)
        order = _order(len(arrays), seed, epoch)
        return order[position * batch_size : (position + 1) * batch_size]

    return _gathered(arrays, index, range(start, _MOST_STEPS), batch_size)


def padded_batches(arrays: Split, batch_size: int) -> Iterator[tuple[Batch, int]]:
    """Yields all examples in order, with how many of each batch are real.

    The last batch repeats its last example up to `batch_size`, for one compiled shape.
    """

    def index(step: int) -> Int[np.ndarray, " b"]:
        places = np.arange(step * batch_size, (step + 1) * batch_size)
        return np.minimum(places, len(arrays) - 1)

    steps = range(-(-len(arrays) // batch_size))
    gathered = _gathered(arrays, index, steps, batch_size)
    for step, batch in zip(steps, gathered, strict=True):
        yield batch, min(batch_size, len(arrays) - step * batch_size)


_Index = Callable[[int], Int[np.ndarray, " b"]]


def _gathered(arrays: Split, index: _Index, steps: range, batch_size: int) -> Iterator[Batch]:
    """The batches of steps, whose examples `index` gives."""
    if isinstance(arrays.images, Undecoded):
        return _decoded_ahead(arrays.images, index, steps, batch_size)
    return (Batch(arrays.images[chosen], arrays.labels[chosen]) for chosen in map(index, steps))


def _decoded_ahead(
    pixels: Undecoded, index: _Index, steps: range, batch_size: int
) -> Iterator[Batch]:
    """Decodes in threads, two batches ahead of the one that is taken.

    Pillow lets other threads run while it decodes.
    """
    import grain  # takes half a second

    def pair(place: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        step, position = divmod(place, batch_size)
        return pixels.pair(int(index(step)[position]))

    threads = min(8, os.cpu_count() or 1)
    ahead = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=2 * max(batch_size, threads)
    )
    places = grain.MapDataset.range(steps.start * batch_size, steps.stop * batch_size)
    stream = places.map(pair).to_iter_dataset(ahead).batch(batch_size)
    return (Batch(images, labels) for images, labels in stream)


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Int[np.ndarray, " {count}"]:
    """A permutation of the examples, the same with every version of NumPy."""
    return np.argsort(np.random.Philox(key=(seed, epoch)).random_raw(count), kind="stable")
