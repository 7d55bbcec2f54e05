"""SERL's ResNet with GroupNorm: a network of its own, and as encoder of a U-Net."""

from typing import ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ..layers import Conv, GroupNorm, max_pool
from .encoder import AbstractEncoder, Pyramid
from .imagenet import normalise

STAGE_CHANNELS = (64, 128, 256, 512)


def _conv(c_in: int, c_out: int, *, kernel_size: int = 3, stride: int = 1, key: PRNGKeyArray):
    return Conv(
        c_in,
        c_out,
        kernel_size=kernel_size,
        stride=stride,
        kernel_init=jax.nn.initializers.he_normal(),
        key=key,
    )


class ResNetBlock(eqx.Module):
    """Residual block of two 3x3 convolutions; a 1x1 projection only where the shape changes."""

    conv1: Conv
    norm1: GroupNorm
    conv2: Conv
    norm2: GroupNorm
    conv_proj: Conv | None
    norm_proj: GroupNorm | None

    def __init__(self, c_in: int, c_out: int, *, stride: int = 1, key: PRNGKeyArray):
        key1, key2, key3 = jax.random.split(key, 3)
        self.conv1 = _conv(c_in, c_out, stride=stride, key=key1)
        self.norm1 = GroupNorm(c_out)
        self.conv2 = _conv(c_out, c_out, key=key2)
        self.norm2 = GroupNorm(c_out)
        projects = stride != 1 or c_in != c_out
        self.conv_proj = (
            _conv(c_in, c_out, kernel_size=1, stride=stride, key=key3) if projects else None
        )
        self.norm_proj = GroupNorm(c_out) if projects else None

    def __call__(self, x: Float[Array, "h w c_in"]) -> Float[Array, "h_out w_out c_out"]:
        y = self.conv1(x)
        y = self.norm2(self.conv2.of_relu(y, *self.norm1.affine(y)))
        if self.conv_proj is not None and self.norm_proj is not None:
            x = self.norm_proj(self.conv_proj(x))
        return jax.nn.relu(x + y)


class SerlResNet(eqx.Module):
    """SERL's image network (MIT, github.com/rail-berkeley/serl), by default ResNet-10.

    Normalises by ImageNet's mean and deviation inside, so images come as RGB in [0, 1].

    Arguments:

    - `stage_sizes`: residual blocks a stage; (1, 1, 1, 1) is ResNet-10, (2, 2, 2, 2) ResNet-18.
    """

    conv_init: Conv
    norm_init: GroupNorm
    stages: tuple[
        tuple[ResNetBlock, ...],
        tuple[ResNetBlock, ...],
        tuple[ResNetBlock, ...],
        tuple[ResNetBlock, ...],
    ]

    def __init__(self, stage_sizes: tuple[int, int, int, int] = (1, 1, 1, 1), *, key: PRNGKeyArray):
        key, stem_key = jax.random.split(key)
        self.conv_init = Conv(
            3,
            64,
            kernel_size=7,
            stride=2,
            padding=((3, 3), (3, 3)),
            kernel_init=jax.nn.initializers.he_normal(),
            key=stem_key,
        )
        self.norm_init = GroupNorm(64)
        c_in, stages = 64, []
        for i, (c_out, blocks) in enumerate(zip(STAGE_CHANNELS, stage_sizes, strict=True)):
            stage = []
            for j in range(blocks):
                key, block_key = jax.random.split(key)
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(ResNetBlock(c_in, c_out, stride=stride, key=block_key))
                c_in = c_out
            stages.append(tuple(stage))
        self.stages = tuple(stages)

    def __call__(
        self, image: Float[Array, "h w 3"]
    ) -> tuple[
        Float[Array, "h4 w4 64"],
        Float[Array, "h8 w8 128"],
        Float[Array, "h16 w16 256"],
        Float[Array, "h32 w32 512"],
    ]:
        """Returns the outputs of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the size."""
        x = self.conv_init(normalise(image))
        x = max_pool(jax.nn.relu(self.norm_init(x)), window=3)
        outputs = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            outputs.append(x)
        return tuple(outputs)


ResNet10 = SerlResNet
"""What the released weights are of, and what the network is without `stage_sizes`."""


class SerlEncoder(AbstractEncoder):
    """SERL's ResNet, whose norms have no state, as encoder of a U-Net."""

    resnet: SerlResNet
    in_channels: int = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    strides: tuple[int, ...] = eqx.field(static=True)
    has_pretrained_weights: ClassVar[bool] = True

    def __init__(self, stage_sizes: tuple[int, int, int, int] = (1, 1, 1, 1), *, key: PRNGKeyArray):
        self.resnet = SerlResNet(stage_sizes, key=key)
        self.in_channels = 3
        self.channels = STAGE_CHANNELS
        self.strides = (4, 8, 16, 32)

    def __call__(
        self, image: Float[Array, "h w {self.in_channels}"], state: eqx.nn.State
    ) -> tuple[Pyramid, eqx.nn.State]:
        return self.resnet(image), state
