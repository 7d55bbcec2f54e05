"""The two U-Nets: from scratch, and with the pretrained ResNet as encoder."""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import ModelConfig
from .blocks import ConvBlock, DownBlock, UpBlock
from .layers import Conv, resize
from .resnet import STAGE_CHANNELS, ResNet10


class AbstractUNet(eqx.Module):
    """One RGB image in [0, 1], of any size, to logits of the same size."""

    size: eqx.AbstractVar[int]

    @abstractmethod
    def __call__(
        self, image: Float[Array, "h w 3"], state: eqx.nn.State
    ) -> tuple[Float[Array, "h w 1"], eqx.nn.State]:
        """Returns the logit of foreground for each pixel, and the new state."""


class UNet(AbstractUNet):
    """Plain U-Net (Ronneberger, Fischer, Brox, MICCAI 2015) with BatchNorm and "SAME" padding."""

    down: tuple[DownBlock, ...]
    bottleneck: ConvBlock
    up: tuple[UpBlock, ...]
    head: Conv
    size: int = eqx.field(static=True)

    def __init__(self, channels: tuple[int, ...], size: int, *, key: PRNGKeyArray):
        down_key, bottleneck_key, up_key, head_key = jax.random.split(key, 4)
        down_keys = jax.random.split(down_key, len(channels) - 1)
        up_keys = jax.random.split(up_key, len(channels) - 1)
        c_ins = (3, *channels[:-2])
        self.down = tuple(
            DownBlock(c_in, c_out, key=k)
            for c_in, c_out, k in zip(c_ins, channels[:-1], down_keys, strict=True)
        )
        self.bottleneck = ConvBlock(channels[-2], channels[-1], key=bottleneck_key)
        deep_to_shallow = channels[::-1]
        self.up = tuple(
            UpBlock(c_in, c_out, c_out, key=k)
            for c_in, c_out, k in zip(deep_to_shallow, deep_to_shallow[1:], up_keys, strict=False)
        )
        self.head = Conv(channels[0], 1, kernel_size=1, use_bias=True, key=head_key)
        self.size = size

    def __call__(
        self, image: Float[Array, "h w 3"], state: eqx.nn.State
    ) -> tuple[Float[Array, "h w 1"], eqx.nn.State]:
        x, skips = image, []
        for down in self.down:
            x, skip, state = down(x, state)
            skips.append(skip)
        x, state = self.bottleneck(x, state)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x, state = up(x, skip, state)
        return self.head(x), state


class Decoder(eqx.Module):
    """Five up blocks from the ResNet's four stages to the image's size; the last two, without
    skips, recover what the encoder's stem took away."""

    up: tuple[UpBlock, UpBlock, UpBlock, UpBlock, UpBlock]
    head: Conv

    def __init__(self, *, key: PRNGKeyArray):
        keys = jax.random.split(key, 6)
        c1, c2, c3, c4 = STAGE_CHANNELS
        self.up = (
            UpBlock(c4, c3, 256, key=keys[0]),
            UpBlock(256, c2, 128, key=keys[1]),
            UpBlock(128, c1, 64, key=keys[2]),
            UpBlock(64, 0, 32, key=keys[3]),
            UpBlock(32, 0, 16, key=keys[4]),
        )
        self.head = Conv(16, 1, kernel_size=1, use_bias=True, key=keys[5])

    def __call__(
        self,
        features: tuple[
            Float[Array, "h4 w4 64"],
            Float[Array, "h8 w8 128"],
            Float[Array, "h16 w16 256"],
            Float[Array, "h32 w32 512"],
        ],
        state: eqx.nn.State,
    ) -> tuple[Float[Array, "4*h4 4*w4 1"], eqx.nn.State]:
        s1, s2, s3, x = features
        for up, skip in zip(self.up, (s3, s2, s1, None, None), strict=True):
            x, state = up(x, skip, state)
        return self.head(x), state


class ResNetUNet(AbstractUNet):
    """SERL's ResNet as encoder and a U-Net decoder on its four stages."""

    encoder: ResNet10
    decoder: Decoder
    size: int = eqx.field(static=True)

    def __init__(self, stage_sizes: tuple[int, int, int, int], size: int, *, key: PRNGKeyArray):
        encoder_key, decoder_key = jax.random.split(key)
        self.encoder = ResNet10(stage_sizes, key=encoder_key)
        self.decoder = Decoder(key=decoder_key)
        self.size = size

    def __call__(
        self, image: Float[Array, "h w 3"], state: eqx.nn.State
    ) -> tuple[Float[Array, "h w 1"], eqx.nn.State]:
        logits, state = self.decoder(self.encoder(image), state)
        return resize(logits, *image.shape[:2]), state


def batched(model: AbstractUNet) -> Callable[[Array, eqx.nn.State], tuple[Array, eqx.nn.State]]:
    """The model as a function of a batch, over which BatchNorm takes its statistics."""
    return jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")


def build(config: ModelConfig, *, key: PRNGKeyArray) -> tuple[AbstractUNet, eqx.nn.State]:
    """Builds a model with random weights, and its BatchNorm state; reads no file.

    Returns a model in training mode; `eqx.nn.inference_mode` switches it.
    """
    if config.encoder == "scratch":
        return eqx.nn.make_with_state(UNet)(config.channels, config.size, key=key)
    return eqx.nn.make_with_state(ResNetUNet)(config.stage_sizes, config.size, key=key)
