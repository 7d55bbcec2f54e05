"""Files of weights onto the leaves of an encoder."""

import os
from typing import TypeVar

import equinox as eqx
import numpy as np
from jaxtyping import Float32

from ..errors import InputError, IntegrityError
from ..weights import read_serl, read_state_dict
from .encoders import AbstractTorchEncoder, SerlEncoder, SerlResNet
from .leaves import named_leaves, named_state, replace_leaves, replace_state
from .unet import UNet

Model = TypeVar("Model", bound=eqx.Module)

_SHOWN = 20  # differences in a message; a file of another network has hundreds

# Dotted path of every array of the encoder, by its path in SERL's tree. SERL's classification head
# has no counterpart.
PATHS = {
    "conv_init/kernel": "conv_init.kernel",
    "norm_init/scale": "norm_init.scale",
    "norm_init/bias": "norm_init.bias",
    "ResNetBlock_0/Conv_0/kernel": "stages.0.0.conv1.kernel",
    "ResNetBlock_0/MyGroupNorm_0/scale": "stages.0.0.norm1.scale",
    "ResNetBlock_0/MyGroupNorm_0/bias": "stages.0.0.norm1.bias",
    "ResNetBlock_0/Conv_1/kernel": "stages.0.0.conv2.kernel",
    "ResNetBlock_0/MyGroupNorm_1/scale": "stages.0.0.norm2.scale",
    "ResNetBlock_0/MyGroupNorm_1/bias": "stages.0.0.norm2.bias",
    "ResNetBlock_1/Conv_0/kernel": "stages.1.0.conv1.kernel",
    "ResNetBlock_1/MyGroupNorm_0/scale": "stages.1.0.norm1.scale",
    "ResNetBlock_1/MyGroupNorm_0/bias": "stages.1.0.norm1.bias",
    "ResNetBlock_1/Conv_1/kernel": "stages.1.0.conv2.kernel",
    "ResNetBlock_1/MyGroupNorm_1/scale": "stages.1.0.norm2.scale",
    "ResNetBlock_1/MyGroupNorm_1/bias": "stages.1.0.norm2.bias",
    "ResNetBlock_1/conv_proj/kernel": "stages.1.0.conv_proj.kernel",
    "ResNetBlock_1/norm_proj/scale": "stages.1.0.norm_proj.scale",
    "ResNetBlock_1/norm_proj/bias": "stages.1.0.norm_proj.bias",
    "ResNetBlock_2/Conv_0/kernel": "stages.2.0.conv1.kernel",
    "ResNetBlock_2/MyGroupNorm_0/scale": "stages.2.0.norm1.scale",
    "ResNetBlock_2/MyGroupNorm_0/bias": "stages.2.0.norm1.bias",
    "ResNetBlock_2/Conv_1/kernel": "stages.2.0.conv2.kernel",
    "ResNetBlock_2/MyGroupNorm_1/scale": "stages.2.0.norm2.scale",
    "ResNetBlock_2/MyGroupNorm_1/bias": "stages.2.0.norm2.bias",
    "ResNetBlock_2/conv_proj/kernel": "stages.2.0.conv_proj.kernel",
    "ResNetBlock_2/norm_proj/scale": "stages.2.0.norm_proj.scale",
    "ResNetBlock_2/norm_proj/bias": "stages.2.0.norm_proj.bias",
    "ResNetBlock_3/Conv_0/kernel": "stages.3.0.conv1.kernel",
    "ResNetBlock_3/MyGroupNorm_0/scale": "stages.3.0.norm1.scale",
    "ResNetBlock_3/MyGroupNorm_0/bias": "stages.3.0.norm1.bias",
    "ResNetBlock_3/Conv_1/kernel": "stages.3.0.conv2.kernel",
    "ResNetBlock_3/MyGroupNorm_1/scale": "stages.3.0.norm2.scale",
    "ResNetBlock_3/MyGroupNorm_1/bias": "stages.3.0.norm2.bias",
    "ResNetBlock_3/conv_proj/kernel": "stages.3.0.conv_proj.kernel",
    "ResNetBlock_3/norm_proj/scale": "stages.3.0.norm_proj.scale",
    "ResNetBlock_3/norm_proj/bias": "stages.3.0.norm_proj.bias",
}


# What PyTorch calls the leaves of our layers.
_TORCH = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "running.mean": "running_mean",
    "running.var": "running_var",
}


def load_weights(
    model: UNet, state: eqx.nn.State, path: str | os.PathLike[str]
) -> tuple[UNet, eqx.nn.State]:
    """Returns the model and state with a file's weights in the encoder, and all else as it was.

    Arguments:

    - `path`: what `load_resnet10` takes for SERL's encoder, and `read_state_dict` for the others.

    Raises InputError if no file fits such an encoder, IntegrityError, listing the differences,
    unless the file holds all of the encoder's arrays and otherwise no more than a classifier.
    """
    encoder = model.encoder
    if isinstance(encoder, SerlEncoder):
        return load_resnet10(model, path), state
    if not isinstance(encoder, AbstractTorchEncoder):
        raise InputError(f"There are no weights for a {type(encoder).__name__}; leave them out.")
    params, statistics = named_leaves(encoder), named_state(encoder, state)
    names = {ours: _torch_name(encoder, ours) for ours in params | statistics}
    arrays = {
        name: array
        for name, array in read_state_dict(path).items()
        if not name.startswith(encoder.left_out) and not name.endswith(".num_batches_tracked")
    }
    wanted = {names[ours]: _torch_shape(leaf.shape) for ours, leaf in (params | statistics).items()}
    differences = [f"{ascii(name)[1:-1][:100]} is unknown" for name in arrays if name not in wanted]
    for name, shape in wanted.items():
        if name not in arrays:
            differences.append(f"{name} is missing")
        elif arrays[name].shape != shape or arrays[name].dtype != np.float32:
            got = f"{arrays[name].dtype}{list(arrays[name].shape)}"
            differences.append(f"{name} is {got}, not float32{list(shape)}")
    if differences:
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise IntegrityError(
            f"{path}: it does not fit the {type(encoder).__name__}: "
            f"{'; '.join(differences[:_SHOWN])}{more}.\nGive a file of the same network, or "
            "choose its --encoder."
        )
    new = {ours: _from_torch(arrays[name]) for ours, name in names.items()}
    in_model = {f"encoder.{path}": new[path] for path in params}
    in_state = {f"encoder.{path}": new[path] for path in statistics}
    return replace_leaves(model, in_model), replace_state(model, state, in_state)


def _torch_name(encoder: AbstractTorchEncoder, path: str) -> str:
    for ours, theirs in _TORCH.items():
        if path.endswith(f".{ours}"):
            return f"{encoder.torch_name(path.removesuffix(f'.{ours}'))}.{theirs}"
    raise IntegrityError(f"{type(encoder).__name__} has {path}, which PyTorch has no name for.")


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """HWIO as OIHW."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape


def _from_torch(array: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def load_resnet10(model: Model, path: str | os.PathLike[str]) -> Model:
    """Returns the model with SERL's weights in its encoder, and all else as it was.

    Arguments:

    - `model`: a `ResNet10`, or a U-Net with one.
    - `path`: a file as `read_serl` takes it.

    Raises InputError if the model has no ResNet-10 as encoder, IntegrityError if the file is not
    what it should be.
    """
    if isinstance(model, SerlResNet):
        resnet, prefix = model, ""
    elif isinstance(model, UNet) and isinstance(model.encoder, SerlEncoder):
        resnet, prefix = model.encoder.resnet, "encoder.resnet."
    else:
        inside = f" with a {type(model.encoder).__name__}" if isinstance(model, UNet) else ""
        raise InputError(
            f"SERL's weights fit a ResNet10, or a U-Net with one, not a {type(model).__name__}"
            f'{inside}. Build with ModelConfig(encoder="resnet10").'
        )
    sizes = tuple(len(stage) for stage in resnet.stages)
    if sizes != (1, 1, 1, 1):
        raise InputError(
            f"SERL's weights fit stage sizes (1, 1, 1, 1), not {sizes}. Use those, or random "
            "weights."
        )
    if unnamed := named_leaves(resnet).keys() ^ set(PATHS.values()):
        raise IntegrityError(f"Network and table of SERL's weights differ: {sorted(unnamed)}.")
    arrays = read_serl(path)
    return replace_leaves(model, {prefix + ours: arrays[name] for name, ours in PATHS.items()})
