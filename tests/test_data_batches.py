import itertools

import numpy as np
import pytest

from eqxunet.data.batches import batches, padded_batches, steps_per_epoch
from eqxunet.data.cache import Split
from eqxunet.errors import InputError


def arrays_of(count: int) -> Split:
    """Images that hold nothing but their own index, and trimaps its four digits to base 3."""
    index = np.arange(count, dtype=np.uint8)
    return Split(
        np.broadcast_to(index[:, None, None, None], (count, 2, 2, 3)).copy(),
        (index[:, None, None] // [[27, 9], [3, 1]] % 3 + 1).astype(np.uint8),
        tuple(map(str, index)),
    )


def indices(stream, steps: int) -> np.ndarray:
    return np.stack([batch.images[:, 0, 0, 0] for batch in itertools.islice(stream, steps)])


def test_an_epoch_is_a_permutation_without_its_last_part():
    arrays = arrays_of(23)
    assert steps_per_epoch(arrays, 5) == 4
    epochs = indices(batches(arrays, 5, seed=0), 8 * 4).reshape(8, 20)
    for epoch in epochs:
        assert len(set(epoch)) == 20
    # Another order each time, so that what one epoch leaves out comes in another.
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert set(epochs.ravel()) == set(range(23))


def test_images_and_trimaps_stay_together():
    for batch in itertools.islice(batches(arrays_of(9), 4, seed=1), 5):
        assert batch.images.dtype == batch.labels.dtype == np.uint8
        assert batch.images.shape == (4, 2, 2, 3)
        index = np.sum((batch.labels - 1.0) * [[27, 9], [3, 1]], axis=(1, 2))
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], index)


def test_the_same_seed_gives_the_same_batches():
    runs = [indices(batches(arrays_of(50), 8, seed=seed), 20) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 13])
def test_a_resumed_run_sees_what_an_uninterrupted_one_does(start):
    whole = indices(batches(arrays_of(50), 8, seed=2), 20)
    rest = indices(batches(arrays_of(50), 8, seed=2, start=start), 20 - start)
    np.testing.assert_array_equal(rest, whole[start:])


def test_the_next_seed_does_not_repeat_this_ones_next_epoch():
    first, second = (indices(batches(arrays_of(32), 32, seed=seed), 3) for seed in (0, 1))
    assert (first[1] != second[0]).any()


def test_the_order_is_fixed():
    # Philox's raw numbers are the same with every version of NumPy, so these stay as they are.
    assert indices(batches(arrays_of(6), 3, seed=0), 2).tolist() == ORDER


ORDER = [[0, 2, 1], [5, 4, 3]]


def test_orders_are_uniform():
    stream = indices(batches(arrays_of(8), 8, seed=5), 4000)
    counts = np.stack([(stream == i).sum(0) for i in range(8)])
    # 500 are expected in each of 64 cells; the deviation of one is 21.
    assert np.abs(counts - 500).max() < 100


def test_too_few_images_for_a_batch():
    with pytest.raises(InputError, match="3 training images.*--batch-size 3"):
        batches(arrays_of(3), 4, seed=0)
    with pytest.raises(InputError, match="at least 1"):
        steps_per_epoch(arrays_of(3), 0)


@pytest.mark.parametrize(("count", "counts"), [(8, [4, 4]), (9, [4, 4, 1]), (2, [2])])
def test_evaluation_pads_the_last_batch(count, counts):
    arrays = arrays_of(count)
    found = list(padded_batches(arrays, 4))
    assert [real for _, real in found] == counts
    assert all(batch.images.shape == (4, 2, 2, 3) for batch, _ in found)
    seen = np.concatenate([batch.images[:real, 0, 0, 0] for batch, real in found])
    np.testing.assert_array_equal(seen, np.arange(count))
