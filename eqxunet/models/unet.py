"""The U-Net: an encoder's pyramid, a decoder on it, and a head."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import ModelConfig
from .decoder import Decoder, count_blocks
from .encoders import ENCODERS, AbstractEncoder
from .layers import BATCH_AXIS, Conv, resize
from .leaves import named_leaves


class UNet(eqx.Module):
    """One image in [0, 1], of any size, to logits of the same size.

    Arguments:

    - `encoder`: any.
    - `outputs`: logits a pixel.
    - `size`: height and width in pixels that the model is trained at, for `predict`.
    """

    encoder: AbstractEncoder
    decoder: Decoder
    head: Conv
    outputs: int = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, encoder: AbstractEncoder, *, outputs: int = 1, size: int, key: PRNGKeyArray):
        keys = jax.random.split(key, count_blocks(encoder.strides) + 1)
        self.encoder = encoder
        self.decoder = Decoder(encoder.channels, encoder.strides, keys=keys[:-1])
        c_in = self.decoder.out_channels
        self.head = Conv(c_in, outputs, kernel_size=1, use_bias=True, key=keys[-1])
        self.outputs = outputs
        self.size = size

    def __call__(
        self, image: Float[Array, "h w {self.encoder.in_channels}"], state: eqx.nn.State
    ) -> tuple[Float[Array, "h w {self.outputs}"], eqx.nn.State]:
        """Returns the logits of each pixel, and the new state."""
        pyramid, state = self.encoder(image, state)
        x, state = self.decoder(pyramid, state)
        return resize(self.head(x), *image.shape[:2]), state

    def __repr__(self) -> str:
        """Says in a line what `eqx.tree_pformat` says in full."""
        channels = "-".join(map(str, self.encoder.channels))
        outputs = f"{self.outputs} output{'s' if self.outputs > 1 else ''}"
        parameters = f"{sum(leaf.size for leaf in named_leaves(self).values()):,} parameters"
        return f"UNet({type(self.encoder).__name__} {channels}, {outputs}, {parameters})"


def batched(model: UNet) -> Callable[[Array, eqx.nn.State], tuple[Array, eqx.nn.State]]:
    """The model as a function of a batch, over which BatchNorm takes its statistics."""
    return jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name=BATCH_AXIS)


def build(config: ModelConfig, *, outputs: int = 1, key: PRNGKeyArray) -> tuple[UNet, eqx.nn.State]:
    """Builds a model with random weights, and its BatchNorm state; reads no file.

    Arguments:

    - `outputs`: logits a pixel.

    Returns a model in training mode; `eqx.nn.inference_mode` switches it.
    """

    def make() -> UNet:
        encoder_key, decoder_key = jax.random.split(key)
        encoder = ENCODERS[config.encoder](config, encoder_key)
        return UNet(encoder, outputs=outputs, size=config.size, key=decoder_key)

    return eqx.nn.make_with_state(make)()
