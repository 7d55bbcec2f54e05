"""BatchNorm's statistics that belong to a model's weights."""

from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..models import UNet, batched
from ..models.layers import BatchNorm


def precise_statistics(
    model: UNet, state: eqx.nn.State, batches: Iterable[Float[Array, "b h w c"]]
) -> eqx.nn.State:
    """Returns a state with running statistics taken anew, for the weights as they are.

    Running statistics that training leaves are those of earlier weights: at momentum 0.99, of
    hundreds of steps, and of their start at 0 and 1 in a short run (Wu, Johnson, "Rethinking
    'Batch' in BatchNorm", 2021). Here every batch is normalised by its own statistics, as in
    training, and these are joined: the mean of the means, and the variance of all pixels, of
    batches that count alike.

    Arguments:

    - `model`: in training mode. A layer in inference mode keeps its statistics.
    - `state`: may be used further.
    - `batches`: of images as training sees them, augmented where it augments; of
      one size, and one at least.
    """
    norms = [norm for norm in _norms(model) if not norm.inference]
    last = jax.tree.map(_without_momentum, model, is_leaf=_is_norm)
    of_batches = jax.device_get([_batch_statistics(last, state, images) for images in batches])
    if not of_batches:
        raise ValueError("statistics are taken of one batch or more, and there was none")
    joined = []
    for statistics in zip(*of_batches, strict=True):
        mean, var = (np.stack([each[name] for each in statistics]) for name in ("mean", "var"))
        with np.errstate(over="ignore", invalid="ignore"):  # whoever keeps them looks at them
            joined.append({"mean": mean.mean(0), "var": var.mean(0) + mean.var(0)})
    return _with_statistics(state, norms, joined)


@eqx.filter_jit
def _batch_statistics(
    model: UNet, state: eqx.nn.State, images: Float[Array, "b h w c"]
) -> list[dict[str, Array]]:
    """Running statistics of a model without momentum, after a batch: the batch's own."""
    norms = [norm for norm in _norms(model) if not norm.inference]
    # Whatever they were, infinite perhaps, has no part in it.
    zeros = [jax.tree.map(jnp.zeros_like, state.get(norm.running)) for norm in norms]
    _, state = batched(model)(images, _with_statistics(state, norms, zeros))
    return [state.get(norm.running) for norm in norms]


@eqx.filter_jit  # one program, since a State is checked anew at each `set`
def _with_statistics(
    state: eqx.nn.State, norms: list[BatchNorm], statistics: list[dict[str, Array]]
) -> eqx.nn.State:
    for norm, values in zip(norms, statistics, strict=True):
        state = state.set(norm.running, values)
    return state


def _is_norm(node: object) -> bool:
    return isinstance(node, BatchNorm)


def _norms(model: UNet) -> list[BatchNorm]:
    return [leaf for leaf in jax.tree.leaves(model, is_leaf=_is_norm) if _is_norm(leaf)]


def _without_momentum(node: PyTree) -> PyTree:
    return eqx.tree_at(lambda norm: norm.momentum, node, 0.0) if _is_norm(node) else node
