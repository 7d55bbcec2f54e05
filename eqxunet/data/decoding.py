"""Encoded images and masks to pixels, by content; file names and extensions are never trusted."""

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from ..errors import InputError
from .masks import MAX_VALUES, Labels, Mask
from .source import BACKGROUND, BORDER, PET, Example, Source, listed

T = TypeVar("T")

MAX_PIXELS = 89_478_485
"""Width times height above which an image is refused; Pillow's own warning limit."""

Image.init()
_READ = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
FORMATS = tuple(name for name in _READ if name in Image.OPEN)
"""Formats that are read, by content, in the order in which they are tried. Pillow knows more, some
of which it hands to other programs: PostScript to Ghostscript, whatever the file is called."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns about large images and odd EXIF tags, which are dealt with here. Filters belong to
# the process, so only one thread at a time may change them.
_opening = threading.Lock()


def read_image(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file to upright 8-bit RGB. Transparency is dropped, colours are kept.

    Raises: `InputError` where the bytes are no whole image, or one of over 89 megapixels.
    """
    return np.asarray(_to_rgb(_open(data, name), name))


class Decoded(NamedTuple):
    """An example in pixels: RGB image, trimap, and what the mask held before it became one."""

    image: UInt8[np.ndarray, "h w 3"]
    trimap: UInt8[np.ndarray, "h w"]
    mask: Mask


def read_mask(
    data: bytes, name: str, labels: Labels = "trimap"
) -> tuple[UInt8[np.ndarray, "h w"], tuple[str, ...]]:
    """Decodes a mask file to an upright trimap of 1 = pet, 2 = background, 3 = border.

    Returns the trimap, and the distinct values that the file holds, as in `Mask`.

    Arguments:

    - `labels`: `"trimap"`, whose values are taken as they are, or `"binary"`, where black or
      transparent is background and anything else is pet.

    Raises: `InputError` where the bytes are no whole image or the values are unknown.
    """
    image = _open(data, name)
    if image.format in ("JPEG", "MPO"):
        raise InputError(f"{name}: a JPEG holds no exact labels; save the mask as PNG")
    if labels == "binary":
        is_marked, found = _marks(image)
        return np.where(is_marked, np.uint8(PET), np.uint8(BACKGROUND)), found
    values = np.asarray(image)
    known = (PET, BACKGROUND, BORDER)
    if values.ndim != 2 or not np.isin(values, known).all():
        found = f"mode {image.mode}" if values.ndim != 2 else listed(_distinct(values))
        raise InputError(
            f"{name}: a trimap has one channel of 1 (pet), 2 (background) and 3 (border), "
            f"this one has {found}; masks of 0 and 1 belong into a folder `masks/`"
        )
    return values.astype(np.uint8), tuple(_distinct(values))


def decode(example: Example) -> Decoded:
    """Decodes an example to RGB and trimap of one size.

    Raises: `InputError` as `read_image` and `read_mask` do, and where the sizes differ.
    """
    image, mask = example.image, example.mask
    image_file, mask_file = example.files or (example.name, f"mask of {example.name}")
    if isinstance(image, bytes):
        image = read_image(image, image_file)
    if isinstance(mask, bytes):
        mask, values = read_mask(mask, mask_file, example.labels)
    else:
        values = tuple(_distinct(mask))
    if image.shape[:2] != mask.shape:
        (h, w), (mask_h, mask_w) = image.shape[:2], mask.shape
        turned = " (upright, by its EXIF orientation)" if (h, w) == (mask_w, mask_h) else ""
        raise InputError(
            f"{mask_file}: the mask is {mask_w}x{mask_h} pixels but its image{turned} is "
            f"{w}x{h}; make the mask at the image's size"
        )
    foreground, background = (float(np.mean(mask == label)) for label in (PET, BACKGROUND))
    return Decoded(image, mask, Mask(values, foreground, background))


def resize_pair(
    image: UInt8[np.ndarray, "h w 3"], trimap: UInt8[np.ndarray, "h w"], size: int
) -> tuple[UInt8[np.ndarray, "{size} {size} 3"], UInt8[np.ndarray, "{size} {size}"]]:
    """Squashes both to `size` x `size`: the image bilinear and antialiased, the trimap nearest."""
    return resize_image(image, size), np.asarray(
        Image.fromarray(trimap).resize((size, size), Image.Resampling.NEAREST)
    )


def resize_image(
    image: UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Squashes an image to `size` x `size`, bilinear and antialiased."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def map_examples(use: Callable[[Example], T], source: Source) -> Iterator[T | InputError]:
    """Uses every example, in threads, in order; a bad one yields its error and stops nothing.

    Pillow lets other threads run while it decodes.
    """
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        yield from pool.map(lambda index: _used(use, source, index), range(len(source)))
    finally:
        pool.shutdown(cancel_futures=True)


def _used(use: Callable[[Example], T], source: Source, index: int) -> T | InputError:
    try:
        return use(source[index])
    except InputError as error:
        return error


def _open(data: bytes, name: str) -> Image.Image:
    """Reads all pixels and turns them upright."""
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            orientation = _orientation(image)
        image.load()
    except Image.DecompressionBombError:
        raise InputError(
            f"{name}: over {MAX_PIXELS / 1e6:.0f} megapixels; scale it down first"
        ) from None
    except Exception as error:
        # Pillow's plugins raise whatever their parsers meet: OSError, SyntaxError, struct.error...
        cause = f"none of {', '.join(FORMATS)}"
        if not isinstance(error, Image.UnidentifiedImageError):
            cause = str(error) or type(error).__name__
        raise InputError(
            f"{name}: cannot be read as an image ({cause}); replace or remove it"
        ) from error
    return _transposed(image, orientation)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1  # broken EXIF says nothing about the pixels, which may well be good


def _transposed(image: Image.Image, orientation: int) -> Image.Image:
    if orientation not in _UPRIGHT:
        return image
    upright = image.transpose(_UPRIGHT[orientation])
    upright.format = image.format
    return upright


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, also where Pillow holds it in 32 bits
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"{name}: 32-bit pixels; save it with 8 or 16 bits a channel")
        image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise InputError(f"{name}: floating-point pixels; save it with 8 or 16 bits a channel")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # Pillow warns about a transparent palette otherwise
    return image.convert("RGB")


def _marks(image: Image.Image) -> tuple[Bool[np.ndarray, "h w"], tuple[str, ...]]:
    """Where a mask is neither black nor transparent, and its distinct values, as in `Mask`."""
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 2:
        return values != 0, tuple(_distinct(values))
    is_opaque = np.ones(values.shape[:2], bool)
    if image.mode in ("LA", "RGBA"):
        values, is_opaque = values[..., :-1], values[..., -1] != 0
    rgb = np.broadcast_to(values, (*is_opaque.shape, 3)).astype(np.uint32)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    codes = np.unique((red << 16 | green << 8 | blue)[is_opaque])[:MAX_VALUES]
    found = [_colour(int(code)) for code in codes]
    if not is_opaque.all():
        found.append("transparent")
    return (values != 0).any(-1) & is_opaque, tuple(found)


def _colour(code: int) -> str:
    red, green, blue = code >> 16, code >> 8 & 255, code & 255
    return str(red) if red == green == blue else f"#{code:06x}"


def _distinct(values: Shaped[np.ndarray, "h w"]) -> list[str]:
    if values.dtype == np.uint8:  # thirty times as fast as sorting
        return [str(value) for value in np.flatnonzero(np.bincount(values.ravel(), minlength=1))]
    return [f"{value:.9g}" for value in np.unique(values)[:MAX_VALUES].astype(float)]
