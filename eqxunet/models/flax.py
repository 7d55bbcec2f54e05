"""Parameters of the Flax original, onto Equinox leaves."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..errors import IntegrityError
from .layers import BatchNorm
from .leaves import dotted, named_leaves, replace_leaves
from .unet import AbstractUNet, ResNetUNet

Model = TypeVar("Model", bound=AbstractUNet)

# Flax numbers the modules of a kind in the order in which their parent calls them.
_FLAX = {
    "block": "ConvBlock_0",
    "bottleneck": "ConvBlock_0",
    "up": "ConvTranspose_0",
    "head": "Conv_0",
    "conv1": "Conv_0",
    "conv2": "Conv_1",
    "norm1": "BatchNorm_0",
    "norm2": "BatchNorm_1",
}
_FLAX_IN_ENCODER = _FLAX | {"norm1": "MyGroupNorm_0", "norm2": "MyGroupNorm_1"}


def from_flax(
    model: Model, state: eqx.nn.State, variables: Mapping[str, Any]
) -> tuple[Model, eqx.nn.State]:
    """Returns the model and state with the values of a Flax model of the same architecture.

    Arguments:

    - `variables`: `{"params": ..., "batch_stats": ...}`, nested as Flax's `init` returns them.

    Raises IntegrityError, listing the differences, unless every array on either side has a
    counterpart of the same shape on the other.
    """
    flat = _flat(variables)
    parameters = {
        path: f"params/{_flax_name(model, path)}" for path in named_leaves(_arrays(model))
    }
    running = {
        (path, s): f"batch_stats/{_flax_name(model, path)}/{s}"
        for path in _batch_norms(model)
        for s in ("mean", "var")
    }
    names = {*parameters.values(), *running.values()}
    missing, extra = sorted(names - flat.keys()), sorted(flat.keys() - names)
    if missing or extra:
        raise IntegrityError(
            f"These Flax variables do not fit the model: missing {missing}, unknown {extra}."
        )
    model = replace_leaves(model, {path: flat[name] for path, name in parameters.items()})
    for path, norm in _batch_norms(model).items():
        new = {s: jnp.asarray(flat[running[path, s]]) for s in ("mean", "var")}
        state = state.set(norm.running, new)
    return model, state


def _arrays(model: AbstractUNet) -> AbstractUNet:
    return eqx.filter(model, eqx.is_array)


def _batch_norms(model: AbstractUNet) -> dict[str, BatchNorm]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        model, is_leaf=lambda node: isinstance(node, BatchNorm)
    )
    return {dotted(path): node for path, node in leaves if isinstance(node, BatchNorm)}


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{rest}": leaf for rest, leaf in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _flax_name(model: AbstractUNet, path: str) -> str:
    """`down[1].block.conv2.kernel` is `DownBlock_1/ConvBlock_0/Conv_1/kernel`."""
    names = _FLAX_IN_ENCODER if path.startswith("encoder.") else _FLAX
    parts = []
    for part in path.split("."):
        if level := re.fullmatch(r"(down|up)\[(\d+)\]", part):
            parts.append(f"{level[1].capitalize()}Block_{level[2]}")
        elif (block := re.fullmatch(r"stages\[(\d+)\]\[(\d+)\]", part)) and isinstance(
            model, ResNetUNet
        ):
            before = sum(len(stage) for stage in model.encoder.stages[: int(block[1])])
            parts.append(f"ResNetBlock_{before + int(block[2])}")
        else:
            parts.append(names.get(part, part))
    return "/".join(parts)
