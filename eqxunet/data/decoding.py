"""Encoded images and masks to pixels, by content; file names and extensions are never trusted."""

import io
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

from ..config import Labels
from ..storage import open_regular
from .budget import Budget
from .classes import Classes
from .complaints import FileError
from .example import Example, Source
from .kinds import species_of
from .mask_files import LEVELS, Found, mask_labels
from .masks import Mask

T = TypeVar("T")
BinaryFile = BufferedReader | BytesIO

MAX_PIXELS = 89_478_485
"""Width times height above which an image is refused; Pillow's own warning limit."""
SCALE_DOWN = "scale it down first"
"""What to do about a larger one."""

_BYTES = 8  # a pixel: no format has more that is read

_STRIP = 1 << 20  # pixels

pixel_budget = Budget(MAX_PIXELS)
"""Of the images that all threads decode at a time, each with its mask: this bounds their memory."""

Image.init()
# Of blocks above 32 MiB, glibc gives the memory back as an image is closed. Of Pillow's own 16 MiB,
# it keeps that of a large image for the thread that read it, and so once for each thread.
Image.core.set_block_size(1 << 26)
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


def read_image(
    data: bytes | BinaryFile,
    name: str,
    *,
    max_pixels: int = MAX_PIXELS,
    too_large: str = SCALE_DOWN,
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file to upright 8-bit RGB. Transparency is dropped, colours are kept.

    Arguments:

    - `data`: its bytes, or the open file.
    - `max_pixels`: width times height above which it is refused.
    - `too_large`: the way out that the error then names.

    Raises InputError where the bytes are no whole image, or one of over `max_pixels`, or far more
    bytes than such an image has.
    """
    image = _open(data, name, max_pixels, too_large)
    rows = max(1, _STRIP // image.width)
    if image.height <= rows:
        return np.asarray(_to_rgb(image, name))
    # By strips, since Pillow takes four bytes a pixel, and a copy of the whole to convert it.
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        pixels[top : top + rows] = np.asarray(_to_rgb(image.crop(box), name))
    return pixels


def read_resized(
    data: bytes | BinaryFile, name: str, size: int, *, too_large: str = SCALE_DOWN
) -> tuple[UInt8[np.ndarray, "{size} {size} 3"], tuple[int, int]]:
    """What `resize_image` makes of `read_image`, without the way over an array; and its own size.

    Returns the small image, and the height and width that it had.
    """
    image = _to_rgb(_open(data, name, too_large=too_large), name)
    small = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return small, (image.height, image.width)


def read_mask(data: bytes | BinaryFile, name: str, kind: Labels, classes: Classes) -> Found:
    """Decodes a mask file to upright labels; see `mask_labels`.

    Raises InputError where the bytes are no whole image or the mask holds no such labels.
    """
    return mask_labels(_open(data, name), name, kind, classes)


def upright_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """A Pillow image as `read_image` gives that of a file."""
    return np.asarray(_to_rgb(_transposed(image, _orientation(image)), "the image"))


class Decoded(NamedTuple):
    """An example in pixels: RGB image, labels of its kind, and what the mask held."""

    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]
    mask: Mask


def decode(example: Example) -> Decoded:
    """Decodes an example to RGB and labels of one size.

    Raises InputError where image or mask cannot be read or is no whole image, a mask holds values
    that its kind does not have, or the sizes differ.
    """
    image, labels, values = _pixels(example)
    return Decoded(image, labels, Mask.of(labels, example.kind, values))


def decode_mask(example: Example) -> Mask:
    """What an example's mask holds, without its image; raises what `decode` raises of a mask."""
    labels, values = _labels(example)
    return Mask.of(labels, example.kind, values)


def decode_pair(
    example: Example, size: int
) -> tuple[UInt8[np.ndarray, "{size} {size} 3"], UInt8[np.ndarray, "{size} {size}"]]:
    """Image and labels of an example as `resize_pair` gives them; raises what `decode` raises."""
    image, labels, _ = _pixels(example)
    return resize_pair(image, labels, size)


def _pixels(
    example: Example,
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"], Mapping[str, float] | None]:
    image = example.image
    image_file, mask_file = _files(example)
    if not isinstance(image, np.ndarray):
        with opened(image, image_file) as file:
            image = read_image(file, image_file)
    labels, values = _labels(example)
    if image.shape[:2] != labels.shape:
        (h, w), (mask_h, mask_w) = image.shape[:2], labels.shape
        turned = " (upright, by its EXIF orientation)" if (h, w) == (mask_w, mask_h) else ""
        raise FileError(
            mask_file,
            f"the mask is {mask_w}x{mask_h} pixels but its image{turned} is {w}x{h}; make the "
            "mask at the image's size",
        )
    return image, labels, values


def _labels(example: Example) -> Found:
    labels, values = example.mask, None
    if not isinstance(labels, np.ndarray):
        _, mask_file = _files(example)
        with opened(labels, mask_file) as file:
            labels, values = read_mask(file, mask_file, example.kind, example.classes)
    if example.kind == "species":
        if example.species is None:
            raise FileError(example.name, "of unknown species; choose --labels trimap")
        labels = species_of(labels, example.species)
    return labels, values


def _files(example: Example) -> tuple[str, str]:
    """What image and mask are called in errors."""
    return example.files or (example.name, f"mask of {example.name}")


def resize_pair(
    image: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], size: int
) -> tuple[UInt8[np.ndarray, "{size} {size} 3"], UInt8[np.ndarray, "{size} {size}"]]:
    """Squashes both to `size` x `size`: the image bilinear and antialiased, the labels nearest."""
    return resize_image(image, size), np.asarray(
        Image.fromarray(labels).resize((size, size), Image.Resampling.NEAREST)
    )


def resize_image(
    image: UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Squashes an image to `size` x `size`, bilinear and antialiased."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def map_examples(use: Callable[[Example], T], source: Source) -> Iterator[T | FileError]:
    """Uses every example, in threads, in order; a bad one yields its error and stops nothing.

    Pillow lets other threads run while it decodes. Few results wait to be taken.
    """
    workers = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[T | FileError]] = deque()
    try:
        for index in range(len(source)):
            waiting.append(pool.submit(_used, use, source, index))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _used(use: Callable[[Example], T], source: Source, index: int) -> T | FileError:
    try:
        example = source[index]
        with decoding(example.image, example.mask):
            return use(example)
    except FileError as error:
        return error


@contextmanager
def decoding(*files: Path | bytes | UInt8[np.ndarray, "..."]) -> Iterator[None]:
    """Waits until these files can be decoded beside what other threads decode; until it is left,
    others wait for them."""
    with pixel_budget.taking(max(map(_weight, files))):
        yield


@contextmanager
def opened(file: Path | bytes, name: str) -> Iterator[BinaryFile]:
    """Opens an image file, or the bytes of one.

    Raises InputError where it cannot be read, or is a pipe, a socket or a device.
    """
    try:
        with BytesIO(file) if isinstance(file, bytes) else open_regular(file) as data:
            yield data
    except OSError as error:
        raise FileError(name, f"cannot be read ({error.strerror or error})") from error


def _weight(file: Path | bytes | UInt8[np.ndarray, "..."]) -> int:
    """The pixels that a file says it has, or as many as its bytes could be."""
    if isinstance(file, np.ndarray):
        return 0
    try:
        with opened(file, "") as data, _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = _size(data)
            if size > _BYTES * 2 * MAX_PIXELS:
                return 0
            image = Image.open(data, formats=FORMATS)
            return max(image.width * image.height, size // _BYTES)
    except Exception:
        return 0  # whatever Pillow's parsers raise: it is refused before its pixels are decoded


def _open(
    data: bytes | BinaryFile,
    name: str,
    max_pixels: int = MAX_PIXELS,
    too_large: str = SCALE_DOWN,
) -> Image.Image:
    """Reads all pixels and turns them upright."""
    if isinstance(data, bytes):
        data = BytesIO(data)
    if (size := _size(data)) > _BYTES * max_pixels:
        raise FileError(
            name,
            f"{size / 1e6:.0f} MB, more than {max_pixels / 1e6:.0f} megapixels take; {too_large}",
        )
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(data, formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError
            levels = _levels(image)  # before EXIF, for which Pillow reads a PNG's pixels
            orientation = _orientation(image)
        image.load()
    except Image.DecompressionBombError:
        raise FileError(name, f"over {max_pixels / 1e6:.0f} megapixels; {too_large}") from None
    except Exception as error:
        # Pillow's plugins raise whatever their parsers meet: OSError, SyntaxError, struct.error...
        cause = f"none of {', '.join(FORMATS)}"
        if not isinstance(error, Image.UnidentifiedImageError):
            cause = str(error) or type(error).__name__
        raise FileError(
            name, f"cannot be read as an image ({cause}); replace or remove it"
        ) from error
    if levels is not None:
        image.info[LEVELS] = levels
    return _transposed(image, orientation)


def _size(file: BinaryFile) -> int:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1  # broken EXIF says nothing about the pixels, which may well be good


def _levels(image: ImageFile.ImageFile) -> int | None:
    """The highest grey level where Pillow would spread the levels of fewer bits over 8."""
    arguments = image.tile[0].args if image.mode == "L" and image.tile else None
    match arguments:
        case (str(), int(highest)) if image.format == "PPM":
            return highest
        case str(raw) | (str(raw), *_) if raw.startswith(("L;2", "L;4")):
            return 2 ** int(raw[2]) - 1
    return None


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
            raise FileError(name, "32-bit pixels; save it with 8 or 16 bits a channel")
        image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise FileError(name, "floating-point pixels; save it with 8 or 16 bits a channel")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # Pillow warns about a transparent palette otherwise
    return image if image.mode == "RGB" else image.convert("RGB")
