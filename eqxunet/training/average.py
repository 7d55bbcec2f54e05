"""The moving average of the weights."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

_DECAY = 0.999


def moving_average(average: PyTree, trainable: PyTree, step: Int[Array, ""]) -> PyTree:
    """Returns the average after a step, which is None where there is none (Polyak, Juditsky, 1992).

    Its memory grows with the run, as TensorFlow's `ExponentialMovingAverage` lets it: at step t the
    decay is (1 + t) / (10 + t), so that what counts are the latest tenth or so of all steps, and
    nothing is left of the initial weights, up to 0.999, which are the latest thousand.

    Arguments:

    - `trainable`: the trained leaves that the step leaves behind.
    - `step`: its number, from 0 on.
    """
    if average is None:
        return None
    decay = jnp.minimum(_DECAY, (1 + step) / (10 + step))
    return optax.incremental_update(trainable, average, 1 - decay)
