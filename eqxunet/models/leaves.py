"""Leaves of a model by dotted path, such as `encoder.stages[0][0].conv1.kernel`."""

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from ..errors import IntegrityError

Tree = TypeVar("Tree", bound=PyTree)


def named_leaves(tree: PyTree) -> dict[str, PyTree]:
    """Returns every leaf by its dotted path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {dotted(path): leaf for path, leaf in leaves}


def replace_leaves(tree: Tree, new: Mapping[str, Shaped[Array | np.ndarray, "..."]]) -> Tree:
    """Returns the tree with the named leaves replaced, and all others as they were.

    Raises IntegrityError, listing every name that the tree lacks and every leaf whose shape or
    dtype differs.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    old = {dotted(path): leaf for path, leaf in leaves}
    wrong = [f"{name}: not in the model" for name in new if name not in old]
    for name in old.keys() & new.keys():
        want, got = (f"{leaf.dtype}{list(leaf.shape)}" for leaf in (old[name], new[name]))
        if want != got:
            wrong.append(f"{name}: the model has {want}, given {got}")
    if wrong:
        raise IntegrityError("These leaves do not fit: " + "; ".join(sorted(wrong)))
    merged = old | {name: jnp.asarray(leaf) for name, leaf in new.items()}
    return jax.tree_util.tree_unflatten(treedef, list(merged.values()))


def dotted(path: tuple) -> str:
    """Returns the dotted form of a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(path).removeprefix(".")
