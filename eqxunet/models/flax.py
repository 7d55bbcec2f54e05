"""Variables of the Flax original, onto Equinox leaves."""

import re
from collections.abc import Mapping
from typing import Any

import equinox as eqx

from ..errors import IntegrityError
from .encoders import AbstractEncoder, SerlEncoder, SerlResNet
from .leaves import named_leaves, named_state, replace_leaves, replace_state
from .unet import UNet

# Flax numbers the modules of a kind in the order in which their parent calls them.
_FLAX = {
    "block": "ConvBlock_0",
    "up": "ConvTranspose_0",
    "head": "Conv_0",
    "conv1": "Conv_0",
    "conv2": "Conv_1",
    "norm1": "BatchNorm_0",
    "norm2": "BatchNorm_1",
}
_FLAX_IN_SERL = _FLAX | {"norm1": "MyGroupNorm_0", "norm2": "MyGroupNorm_1"}


def from_flax(
    model: UNet, state: eqx.nn.State, variables: Mapping[str, Any]
) -> tuple[UNet, eqx.nn.State]:
    """Returns the model and state with the values of a Flax model of the same architecture.

    Arguments:

    - `variables`: `{"params": ..., "batch_stats": ...}`, nested as Flax's `init` returns them.

    Raises IntegrityError, listing the differences, unless every array on either side has a
    counterpart of the same shape on the other.
    """
    params, statistics = _flat(variables["params"]), _flat(variables["batch_stats"])
    param_names = {path: _flax_name(model, path) for path in named_leaves(model)}
    statistic_names = {path: _flax_name(model, path) for path in named_state(model, state)}
    for given, names in ((params, param_names), (statistics, statistic_names)):
        missing = sorted(set(names.values()) - given.keys())
        unknown = sorted(given.keys() - set(names.values()))
        if missing or unknown:
            raise IntegrityError(
                f"Flax variables do not fit the model: missing {missing}, unknown {unknown}."
            )
    model = replace_leaves(model, {path: params[name] for path, name in param_names.items()})
    statistics = {path: statistics[name] for path, name in statistic_names.items()}
    return model, replace_state(model, state, statistics)


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{rest}": leaf for rest, leaf in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _flax_name(model: UNet, path: str) -> str:
    """`encoder.levels.1.conv2.kernel` is `DownBlock_1/ConvBlock_0/Conv_1/kernel`."""
    names = _FLAX
    if isinstance(model.encoder, SerlEncoder):
        if path.startswith("encoder."):
            names = _FLAX_IN_SERL
        path = _in_serl_original(model.encoder.resnet, path)
    else:
        path = _in_plain_original(model.encoder, path)
    path = re.sub(r"\bup\.(\d+)", r"UpBlock_\1", path)
    path = path.replace(".running.", ".")
    return "/".join(names.get(part, part) for part in path.split("."))


def _in_plain_original(encoder: AbstractEncoder, path: str) -> str:
    """There all blocks are the U-Net's own, and the deepest level is no block that goes down."""
    deepest = len(encoder.channels) - 1
    path = path.removeprefix("decoder.").replace(f"encoder.levels.{deepest}.", "block.")
    return re.sub(r"^encoder\.levels\.(\d+)", r"DownBlock_\1.block", path)


def _in_serl_original(resnet: SerlResNet, path: str) -> str:
    """There the head is the decoder's, and blocks are counted through all stages."""
    path = re.sub(r"^head\.", "decoder.head.", path.replace("encoder.resnet.", "encoder."))
    if found := re.search(r"stages\.(\d+)\.(\d+)", path):
        before = sum(len(stage) for stage in resnet.stages[: int(found[1])])
        path = path.replace(found[0], f"ResNetBlock_{before + int(found[2])}")
    return path
