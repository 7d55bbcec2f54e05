"""BatchNorm's statistics that belong to a model's weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt8

from .data.augment import to_float
from .models import AbstractUNet, batched
from .models.layers import BatchNorm


@eqx.filter_jit
def precise_statistics(
    model: AbstractUNet,
    state: eqx.nn.State,
    images: UInt8[Array | np.ndarray, "n b h w 3"],
) -> eqx.nn.State:
    """Returns the state with running statistics taken anew, for the weights as they are.

    Running statistics that training leaves are those of earlier weights: at momentum 0.99, of
    hundreds of steps, and of their start at 0 and 1 in a short run (Wu, Johnson, "Rethinking
    'Batch' in BatchNorm", 2021). Here every batch is normalised by its own statistics, as in
    training, and these are joined: the mean of the means, and the variance of all pixels.

    Arguments:

    - `model`: in training mode. A layer in inference mode keeps its statistics.
    - `images`: `n` batches of RGB training images.
    """

    def is_norm(node: object) -> bool:
        return isinstance(node, BatchNorm)

    def without_momentum(node: PyTree) -> PyTree:
        return eqx.tree_at(lambda norm: norm.momentum, node, 0.0) if is_norm(node) else node

    # Its running statistics are those of the last batch.
    last = jax.tree.map(without_momentum, model, is_leaf=is_norm)
    leaves = jax.tree.leaves(last, is_leaf=is_norm)
    norms = [leaf for leaf in leaves if is_norm(leaf) and not leaf.inference]
    for norm in norms:  # whatever they were, infinite perhaps, has no part in it
        state = state.set(norm.running, jax.tree.map(jnp.zeros_like, state.get(norm.running)))

    def of_batch(images: UInt8[Array, "b h w 3"]) -> list[dict[str, Array]]:
        _, after = batched(last)(to_float(images), jax.tree.map(lambda leaf: leaf, state))
        return [after.get(norm.running) for norm in norms]

    statistics = jax.lax.map(of_batch, jnp.asarray(images))
    for norm, of_batches in zip(norms, statistics, strict=True):
        mean, var = of_batches["mean"], of_batches["var"]
        joined = {"mean": jnp.mean(mean, 0), "var": jnp.mean(var, 0) + jnp.var(mean, 0)}
        state = state.set(norm.running, joined)
    return state
