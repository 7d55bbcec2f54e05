"""The contracting path of the original U-Net."""

from typing import ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ..blocks import ConvBlock
from ..layers import max_pool
from .encoder import AbstractEncoder, Pyramid


class PlainEncoder(AbstractEncoder):
    """A ConvBlock a level, and 2x2 max pooling between two (Ronneberger, Fischer, Brox, MICCAI
    2015; with BatchNorm and "SAME" padding)."""

    levels: tuple[ConvBlock, ...]
    in_channels: int = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    strides: tuple[int, ...] = eqx.field(static=True)
    has_pretrained_weights: ClassVar[bool] = False

    def __init__(self, in_channels: int, channels: tuple[int, ...], *, key: PRNGKeyArray):
        c_ins = (in_channels, *channels[:-1])
        keys = jax.random.split(key, len(channels))
        self.levels = tuple(
            ConvBlock(c_in, c_out, key=k)
            for c_in, c_out, k in zip(c_ins, channels, keys, strict=True)
        )
        self.in_channels = in_channels
        self.channels = channels
        self.strides = tuple(2**level for level in range(len(channels)))

    def __call__(
        self, image: Float[Array, "h w {self.in_channels}"], state: eqx.nn.State
    ) -> tuple[Pyramid, eqx.nn.State]:
        shallowest, *deeper = self.levels
        x, state = shallowest(image, state)
        maps = [x]
        for level in deeper:
            x, state = level(max_pool(x), state)
            maps.append(x)
        return tuple(maps), state
