"""Mask files to labels: by value, by colour, or by being black or not."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped, UInt8, UInt32
from PIL import Image

from ..config import Labels
from .classes import COLOURS, NAMES, Classes
from .complaints import FileError, some_of
from .kinds import BACKGROUND, BORDER, PET, UNLABELLED
from .masks import MAX_VALUES

Found = tuple[UInt8[np.ndarray, "h w"], Mapping[str, float] | None]
LEVELS = "levels"
"""Key of `Image.info`: the file's highest grey level, where Pillow spreads levels over 0 to 255."""
_STRIP = 1 << 20  # pixels
_NO_INDICES = "save class indices in one channel of 8 bits"


def mask_labels(image: Image.Image, name: str, kind: Labels, classes: Classes) -> Found:
    """Labels of a mask file, and what values it held where those are not the labels'.

    A `"trimap"` and `"species"` are trimaps, whose values are taken as they are; a `"mask"` is
    background where it is black or transparent; `"classes"` are indices, a palette's too, or
    colours where `classes` has any.

    Raises FileError where the mask holds no such values.
    """
    if image.format in ("JPEG", "MPO"):
        raise FileError(name, "a JPEG holds no exact labels; save the mask as PNG")
    if kind == "mask":
        return _marks(image)
    if kind == "classes":
        decode = _of_colours if classes.colours else _indices
        return decode(image, name, classes), None
    return _trimap(image, name), None


def _trimap(image: Image.Image, name: str) -> UInt8[np.ndarray, "h w"]:
    values = _values(image)
    known = (PET, BACKGROUND, BORDER)
    if values.ndim != 2 or not np.isin(values, known).all():
        found = f"mode {image.mode}" if values.ndim != 2 else some_of([*_shares(values)])
        raise FileError(
            name,
            "a trimap has one channel of 1 (pet), 2 (background) and 3 (border), this one has "
            f"{found}; masks of 0 and 1 belong into a folder `masks/`",
        )
    return values.astype(np.uint8)


def _indices(image: Image.Image, name: str, classes: Classes) -> UInt8[np.ndarray, "h w"]:
    values = _values(image)
    if values.ndim != 2:
        raise FileError(
            name,
            f"holds colours (mode {image.mode}), whose classes nothing tells; add {COLOURS} with "
            f"name,r,g,b a line beside images/, or {_NO_INDICES}",
        )
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > UNLABELLED:
        found = f"values from {values.min():g} to {values.max():g}"
        raise FileError(name, f"holds {found}, which are no class indices; {_NO_INDICES}")
    values = values.astype(np.uint8)
    count = len(classes.names)
    unknown = [value for value in _shares(values) if count <= int(value) != UNLABELLED]
    if classes.names and unknown:
        raise FileError(
            name,
            f"holds {some_of(unknown)}, but {classes.file} names the classes 0 to {count - 1}; "
            f"name all of them, or set pixels without a class to {UNLABELLED}",
        )
    return values


def _of_colours(image: Image.Image, name: str, classes: Classes) -> UInt8[np.ndarray, "h w"]:
    has_indices = image.mode in ("1", "L", "P")
    if image.mode in ("P", "PA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA" and np.asarray(image)[..., 3].min() < 255:
        raise FileError(name, "holds transparent pixels, which have no colour; save it without")
    if image.mode not in ("1", "L", "RGB", "RGBA"):
        raise FileError(name, f"mode {image.mode} holds no exact colours; save it as 8-bit RGB")
    codes = _codes(np.asarray(image.convert("RGB")))
    order = np.argsort(classes.colours)
    known = np.array(classes.colours, np.uint32)[order]
    place = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    is_unknown = known[place] != codes
    if is_unknown.any():
        found, counts = np.unique(codes[is_unknown], return_counts=True)
        most = np.argsort(-counts, kind="stable")
        told = [f"#{found[i]:06x} ({counts[i]} pixels)" for i in most]
        way_out = "add them, or save the mask without smoothing or compression"
        if has_indices:
            way_out = f"add them, or name the classes of masks that hold indices in {NAMES} instead"
        raise FileError(
            name,
            f"holds {len(found)} colours that {classes.file} lacks: {some_of(told, 5)}; {way_out}",
        )
    return order.astype(np.uint8)[place]


def _values(image: Image.Image) -> Shaped[np.ndarray, "h w ..."]:
    """Pixels as the file has them."""
    values = np.asarray(image)
    if (highest := image.info.get(LEVELS, 255)) < 255:
        return np.rint(values * (highest / 255)).astype(np.uint8)
    return values


def _marks(image: Image.Image) -> Found:
    """Where a mask is neither black nor transparent, and its distinct values, as in `Mask`."""
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 2:
        return (values != 0).astype(np.uint8), _shares(values)
    marks = np.empty(values.shape[:2], np.uint8)
    counts: Counter[int] = Counter()
    opaque = 0
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):  # as sorting takes some times the memory
        part = values[top : top + rows]
        is_opaque = np.ones(part.shape[:2], bool)
        if image.mode in ("LA", "RGBA"):
            part, is_opaque = part[..., :-1], part[..., -1] != 0
        codes = _codes(np.broadcast_to(part, (*is_opaque.shape, 3)))
        marks[top : top + rows] = (codes != 0) & is_opaque
        found, times = np.unique(codes[is_opaque], return_counts=True)
        # Whatever is among the first of all is among the first of its strip.
        counts.update(dict(zip(found[:MAX_VALUES].tolist(), times.tolist(), strict=False)))
        opaque += int(is_opaque.sum())
    shares = {_colour(code): counts[code] / marks.size for code in sorted(counts)[:MAX_VALUES]}
    if opaque < marks.size:
        shares["transparent"] = 1 - opaque / marks.size
    return marks, shares


def _codes(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt32[np.ndarray, "h w"]:
    """Colours as 0xrrggbb."""
    codes = np.zeros(rgb.shape[:2], np.uint32)
    for channel in range(3):
        codes <<= 8
        codes |= rgb[..., channel]
    return codes


def _colour(code: int) -> str:
    red, green, blue = code >> 16, code >> 8 & 255, code & 255
    return str(red) if red == green == blue else f"#{code:06x}"


def _shares(values: Shaped[np.ndarray, "h w"]) -> dict[str, float]:
    """Share of pixels of each of the first distinct values."""
    if values.dtype == np.uint8:  # thirty times as fast as sorting
        counts = np.bincount(values.ravel(), minlength=1)
        return {str(v): float(counts[v] / values.size) for v in np.flatnonzero(counts)}
    found, counts = np.unique(values, return_counts=True)
    return {
        f"{value:.9g}": float(count / values.size)
        for value, count in zip(found[:MAX_VALUES].astype(float), counts, strict=False)
    }
