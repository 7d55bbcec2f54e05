"""Logits of an image at its own size, tiled or resized, in bands of rows as they are finished."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

Forward = Callable[[UInt8[np.ndarray, "b h w c"]], Float[Array | np.ndarray, "b h w k"]]
Band = tuple[int, Float[np.ndarray, "rows w k"]]
"""The first row of a band, and its logits."""

_BAND = 1 << 20  # pixels


class Tiling(NamedTuple):
    """The tiles along one axis.

    - `side`: of a tile, in pixels.
    - `starts`: first pixel of each tile, multiples of the stride.
    - `weights`: of each tile's pixels; those of all tiles at a pixel sum to one.
    """

    side: int
    starts: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, "n side"]

    @property
    def end(self) -> int:
        """Where the last tile ends; the image is continued up to there."""
        return int(self.starts[-1]) + self.side


def tiling(size: int, tile: int, overlap: int, stride: int) -> Tiling:
    """Places tiles along an axis, evenly, with a new one every `tile` pixels at least.

    Their sides are the sum of `tile` and `overlap`. A shorter axis has one, of quarters of that, so
    that images of many sizes share few compiled shapes.

    Arguments:

    - `stride`: what starts and sides are multiples of; here both numbers are rounded up.
    """
    step, overlap = _up(tile, stride), _up(overlap, stride)
    side = step + overlap
    if size <= side:
        side = min(side, _up(size, _up(side // 4, stride)))
        return Tiling(side, np.zeros(1, int), np.ones((1, side), np.float32))
    span = _up(size, stride) - side  # from the first start to the last
    count = -(-span // step) + 1
    starts = np.arange(count) * span // (count - 1) // stride * stride
    weights = _weights(side, overlap, count)
    # More than two tiles may lie over a pixel.
    total = np.zeros(span + side, np.float32)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + side] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start : start + side]
    return Tiling(side, starts, weights)


def _weights(side: int, overlap: int, count: int) -> Float[np.ndarray, "{count} {side}"]:
    """Zero over the outer 7/16 of an overlap, rising over the 2/16 in its middle; but not at the
    image's own borders."""
    outer = 7 * overlap // 16
    pixel = np.arange(side, dtype=np.float32)
    rising = np.clip((pixel + 0.5 - outer) / max(overlap - 2 * outer, 1), 0, 1)
    weights = np.tile(np.minimum(rising, rising[::-1]), (count, 1))
    weights[0, : side // 2] = weights[0, side // 2]
    weights[-1, side // 2 :] = weights[-1, side // 2]
    return weights


def bands(
    forward: Forward,
    image: UInt8[np.ndarray, "h w c"],
    rows: Tiling,
    columns: Tiling,
    *,
    outputs: int,
    batch_size: int,
) -> Iterator[Band]:
    """Yields the logits of an image from top to bottom, each row once; beyond its lower and right
    borders it is continued by its mirror image.

    Arguments:

    - `forward`: logits of a batch of tiles.
    - `outputs`: logits a pixel.
    - `batch_size`: the most tiles of a batch, all of them side by side.
    """
    height, width = image.shape[:2]
    count = len(columns.starts)
    batch_size = min(batch_size, 1 << (count - 1).bit_length())  # of few different shapes
    carried = np.zeros((0, columns.end, outputs), np.float32)
    for top, row_weights, end in zip(
        rows.starts, rows.weights, [*rows.starts[1:], height], strict=True
    ):
        strip = image[top : top + rows.side]
        missing = (rows.side - len(strip), columns.end - width)
        strip = np.pad(strip, [(0, missing[0]), (0, missing[1]), (0, 0)], "symmetric")
        sums = np.zeros((rows.side, columns.end, outputs), np.float32)
        for first in range(0, count, batch_size):
            lefts = columns.starts[first : first + batch_size]
            tiles = np.zeros((batch_size, rows.side, columns.side, image.shape[2]), np.uint8)
            for tile, left in zip(tiles, lefts, strict=False):
                tile[:] = strip[:, left : left + columns.side]
            weights = columns.weights[first : first + batch_size]
            for left, weight, logits in zip(
                lefts, weights, np.asarray(forward(tiles)), strict=False
            ):
                sums[:, left : left + columns.side] += weight[:, None] * logits
        sums *= row_weights[:, None, None]
        sums[: len(carried)] += carried
        yield int(top), sums[: end - top, :width]
        carried = sums[end - top :]


def resize_logits(
    logits: Float[np.ndarray, "h w k"], size: tuple[int, int]
) -> Float[np.ndarray, "..."]:
    """Resizes logits bilinearly to a height and a width."""
    return np.concatenate([band for _, band in resized_bands(logits, size)])


def resized_bands(logits: Float[np.ndarray, "h w k"], size: tuple[int, int]) -> Iterator[Band]:
    """Yields logits that are resized bilinearly to a height and a width, in bands of rows."""
    # Pillow, since jax.image.resize would compile anew for every size of image.
    height, width = size
    channels = [Image.fromarray(channel) for channel in np.moveaxis(logits, -1, 0).copy()]
    scale = logits.shape[0] / height
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        end = min(top + rows, height)
        box = (0, top * scale, logits.shape[1], min(end * scale, logits.shape[0]))
        resized = [
            channel.resize((width, end - top), Image.Resampling.BILINEAR, box)
            for channel in channels
        ]
        yield top, np.stack([np.asarray(channel) for channel in resized], axis=-1)


def _up(size: int, multiple: int) -> int:
    """The size, rounded up."""
    return -(-size // multiple) * multiple
