"""All that a run needs to go on, as named arrays and back."""

import dataclasses
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree, Shaped

from ..errors import IntegrityError
from ..models.leaves import named_leaves, named_state, replace_leaves, replace_state, select
from .optimizer import split_encoder
from .step import Trainer, TrainState
from .unfreezing import unfreeze


def to_arrays(trainer: Trainer, train_state: TrainState) -> dict[str, Shaped[Array, "..."]]:
    """Returns model, statistics, optimiser and counts by name.

    The model is the one to be used; where its weights are an average, those from which training
    goes on stand beside it.

    The optimiser's moments, which it holds as one vector of all trained leaves, are named as those
    leaves are: in a vector alone, their order would be that of the model's fields.
    """
    model = trainer.model(train_state)
    parts = {
        "model": named_leaves(model),
        "state": named_state(model, train_state.state),
        "optimizer": named_leaves(_unravelled(train_state.trainable, train_state.opt_state)),
        "counts": {"step": train_state.step, "skipped": train_state.skipped},
    }
    if train_state.average is not None:
        parts["trained"] = named_leaves(train_state.trainable)
    return {
        f"{part}.{name}": leaf for part, leaves in parts.items() for name, leaf in leaves.items()
    }


def from_arrays(
    trainer: Trainer, train_state: TrainState, arrays: Mapping[str, Shaped[np.ndarray, "..."]]
) -> tuple[Trainer, TrainState]:
    """Returns both with the values that `to_arrays` named.

    Where the encoder was trained by then, though it was frozen at first, it is among what is
    trained.

    Raises IntegrityError, listing the differences, where the arrays are of another run.
    """
    expected = to_arrays(trainer, train_state).keys()
    if expected != arrays.keys() and trainer.config.unfreeze_after is not None:
        trainer, train_state = unfreeze(trainer, train_state)
        expected = to_arrays(trainer, train_state).keys()
    if expected != arrays.keys():
        missing, unknown = sorted(expected - arrays.keys()), sorted(arrays.keys() - expected)
        raise IntegrityError(
            f"The checkpoint is not of this run: missing {missing}, unknown {unknown}."
        )
    state = replace_state(trainer.model(train_state), train_state.state, select(arrays, "state"))
    model = select(arrays, "model")
    names = named_leaves(train_state.trainable)
    frozen = replace_leaves(
        trainer.frozen, {name: leaf for name, leaf in model.items() if name not in names}
    )
    used = replace_leaves(train_state.trainable, {name: model[name] for name in names})
    average = train_state.average
    trainable = used if average is None else replace_leaves(average, select(arrays, "trained"))
    average = None if average is None else used
    moments = replace_leaves(
        _unravelled(train_state.trainable, train_state.opt_state), select(arrays, "optimizer")
    )
    counts = {name: jnp.asarray(leaf) for name, leaf in select(arrays, "counts").items()}
    opt_state = jax.tree.map(
        lambda _, tree: tree if eqx.is_array(tree) else ravel_pytree(tree)[0],
        train_state.opt_state,
        moments,
    )
    return dataclasses.replace(trainer, frozen=frozen), TrainState(
        trainable, state, opt_state, average, **counts
    )


@eqx.filter_jit  # one program, instead of two for every trained leaf
def _unravelled(trainable: PyTree, opt_state: PyTree) -> PyTree:
    """The optimiser's state with trees like the trained leaves in place of its vectors of them."""
    unravel = {}
    for part in (*split_encoder(trainable), trainable):  # an unfrozen encoder has its own vectors
        vector, unravel[vector.shape] = ravel_pytree(part)
    return jax.tree.map(lambda leaf: unravel.get(leaf.shape, lambda leaf: leaf)(leaf), opt_state)
