"""What is taken as an image: files, Pillow's images and arrays, to RGB."""

import os

import numpy as np
from jaxtyping import Array, Shaped, UInt8
from PIL import Image

from ..data.decoding import MAX_PIXELS, SCALE_DOWN, read_image, upright_rgb
from ..errors import InputError
from ..storage import open_regular

Picture = (
    Shaped[np.ndarray, "h w *c"] | Shaped[Array, "h w *c"] | Image.Image | str | os.PathLike[str]
)
Pictures = list[
    Shaped[np.ndarray, "..."] | Shaped[Array, "..."] | Image.Image | str | os.PathLike[str]
]
"""Of any sizes, which `Picture` would hold to one."""

MAX_TILED_PIXELS = 2 * MAX_PIXELS
"""Width times height above which a file is refused even in tiles; Pillow's own limit."""
TOO_LARGE = "give it in tiles (--tile 512), or scale it down first"


def as_rgb(image: Picture, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """An image as RGB in 0..255.

    Arguments:

    - `image`: a file, a Pillow image, or pixels: RGB, RGBA (transparency is dropped) or grey, of
      8 bits or as floating point in [0, 1].
    - `max_pixels`: width times height above which a file is refused.

    Raises InputError for a file that is no image, ValueError for other pixels.
    """
    if isinstance(image, str | os.PathLike):
        return _read_file(image, max_pixels)
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    pixels = np.asarray(image)
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.size and pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                "floating-point pixels go from 0 to 1; divide by 255, or give them as uint8"
            )
        pixels = (pixels * 255).round().astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"an image is uint8 or floating point of shape (h, w), (h, w, 3) or (h, w, 4), "
            f"not {pixels.dtype} of {pixels.shape}; one at a time"
        )
    return np.ascontiguousarray(np.broadcast_to(pixels[..., :3], (*pixels.shape[:2], 3)))


def _read_file(path: str | os.PathLike[str], max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image file as RGB; raises InputError where it cannot be."""
    way_out = TOO_LARGE if max_pixels == MAX_PIXELS else SCALE_DOWN
    try:
        with open_regular(path) as file:
            return read_image(file, str(path), max_pixels=max_pixels, too_large=way_out)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
