"""SERL's weights onto the leaves of the Equinox encoder."""

import os
from typing import TypeVar

import equinox as eqx

from ..errors import InputError, IntegrityError
from ..weights import read_serl
from .encoders import SerlEncoder, SerlResNet
from .leaves import named_leaves, replace_leaves
from .unet import UNet

Model = TypeVar("Model", bound=eqx.Module)

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
