"""Arrays of a model and its state by dotted path, such as `encoder.stages.0.0.conv1.kernel`."""

from collections.abc import Mapping
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from ..errors import IntegrityError

Tree = TypeVar("Tree", bound=PyTree)
NewLeaves = Mapping[str, Shaped[Array | np.ndarray, "..."]]


def named_leaves(tree: PyTree) -> dict[str, Shaped[Array, "..."] | jax.ShapeDtypeStruct]:
    """Returns every array of a tree, or what stands for one, by its dotted path."""
    return {path: leaf for path, leaf in _flatten(tree)[0] if _is_array(leaf)}


def named_state(
    model: eqx.Module, state: eqx.nn.State
) -> dict[str, Shaped[Array, "..."] | jax.ShapeDtypeStruct]:
    """Returns every array of a model's state by the dotted path of the layer that owns it."""
    return {
        f"{owner}.{name}": leaf
        for owner, index in _state_indices(model).items()
        for name, leaf in named_leaves(state.get(index)).items()
    }


def replace_leaves(tree: Tree, new: NewLeaves) -> Tree:
    """Returns the tree with the named arrays replaced, and all other leaves as they were.

    Raises IntegrityError, listing every name that the tree lacks and every array whose shape or
    dtype differs.
    """
    old = named_leaves(tree)
    wrong = [f"{name} is not in the model" for name in new if name not in old]
    for name in old.keys() & new.keys():
        want, got = (f"{leaf.dtype}{list(leaf.shape)}" for leaf in (old[name], new[name]))
        if want != got:
            wrong.append(f"{name} is {got} where the model has {want}")
    if wrong:
        raise IntegrityError("Leaves do not fit: " + "; ".join(sorted(wrong)))
    leaves, treedef = _flatten(tree)
    merged = [jnp.asarray(new[p], leaf.dtype) if p in new else leaf for p, leaf in leaves]
    return jax.tree_util.tree_unflatten(treedef, merged)


def replace_state(model: eqx.Module, state: eqx.nn.State, new: NewLeaves) -> eqx.nn.State:
    """Returns the state with the named arrays replaced; names and errors as above."""
    owned = {}
    for owner, index in _state_indices(model).items():
        owned[owner] = state.get(index)
    owned = replace_leaves(owned, new)
    for owner, index in _state_indices(model).items():
        state = state.set(index, owned[owner])
    return state


def select(arrays: NewLeaves, prefix: str) -> NewLeaves:
    """Returns the arrays whose names start with `prefix` and a dot, without both."""
    prefix += "."
    return {
        name.removeprefix(prefix): leaf for name, leaf in arrays.items() if name.startswith(prefix)
    }


def _state_indices(model: eqx.Module) -> dict[str, eqx.nn.StateIndex]:
    leaves, _ = _flatten(model, is_leaf=lambda node: isinstance(node, eqx.nn.StateIndex))
    return {path: leaf for path, leaf in leaves if isinstance(leaf, eqx.nn.StateIndex)}


def _is_array(leaf: PyTree) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _flatten(tree: PyTree, is_leaf=None):
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    dotted = [(jax.tree_util.keystr(p, simple=True, separator="."), leaf) for p, leaf in leaves]
    return dotted, treedef
