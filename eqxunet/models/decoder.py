"""The expanding path, on any pyramid."""

import equinox as eqx
from jaxtyping import Array, Float, Key

from .blocks import UpBlock
from .encoders import Pyramid


class Decoder(eqx.Module):
    """Up blocks from the deepest map of a pyramid to stride 1, each of which halves the stride.

    Where the pyramid has a map of the new stride, it is the block's skip.

    A pyramid from stride 1 on is a U-Net's own, and its decoder mirrors it: blocks have as many
    channels as their skips, so 32, 64, 128, 256 are decoded by 128, 64, 32. One that starts coarser
    is a classifier's, deep for its classes. Its blocks have half the channels of what comes from
    below, in whole sixteens, which is what convolutions are fast at, and at most 16 times the
    stride: 256, 128, 64, 32, 16 for 512 and for 2048 channels at stride 32, and 160, 80, 48, 32, 16
    for 320. As wide as its skips, ResNet-50's decoder would have 50 million parameters, twice its
    encoder's, and EfficientNet-Lite0's eight channels at full size.

    Arguments:

    - `channels`, `strides`: of the pyramid, shallow to deep.
    - `keys`: one a block; `count_blocks` says how many.
    """

    up: tuple[UpBlock, ...]
    skips: tuple[int | None, ...] = eqx.field(static=True)  # by block, the map's place if any
    out_channels: int = eqx.field(static=True)

    def __init__(
        self, channels: tuple[int, ...], strides: tuple[int, ...], *, keys: Key[Array, " up"]
    ):
        stride, c_in, up, skips = strides[-1], channels[-1], [], []
        for key in keys:
            stride //= 2
            skip = strides.index(stride) if stride in strides else None
            c_skip = 0 if skip is None else channels[skip]
            c_out = c_skip if strides[0] == 1 else min(-(-c_in // 32) * 16, 16 * stride)
            up.append(UpBlock(c_in, c_skip, c_out, key=key))
            skips.append(skip)
            c_in = c_out
        self.up = tuple(up)
        self.skips = tuple(skips)
        self.out_channels = c_in

    def __call__(
        self, pyramid: Pyramid, state: eqx.nn.State
    ) -> tuple[Float[Array, "h w {self.out_channels}"], eqx.nn.State]:
        *_, x = pyramid
        for up, skip in zip(self.up, self.skips, strict=True):
            x, state = up(x, None if skip is None else pyramid[skip], state)
        return x, state


def count_blocks(strides: tuple[int, ...]) -> int:
    """Returns how many times the deepest stride halves on the way to 1.

    Raises ValueError unless the strides are rising powers of two.
    """
    rising = all(a < b for a, b in zip(strides, strides[1:], strict=False))
    if not strides or not rising or any(stride.bit_count() != 1 for stride in strides):
        raise ValueError(
            f"A decoder goes up by factors of two, from strides that are rising powers of two, "
            f"such as (4, 8, 16, 32), not {strides}: mend the encoder's `strides`."
        )
    return strides[-1].bit_length() - 1
