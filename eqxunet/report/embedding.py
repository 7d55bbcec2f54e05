"""Pictures and their counts as text that a page carries and its script unpacks."""

import base64
import io
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from ..evaluation.details import histogram

ROOM = 33_000_000
"""Characters for pictures in a page of less than 40 MB."""

COARSE = 16
"""Steps of 1/256 in which the probabilities of a picture are carried that has little room."""

_QUALITY = 75


class Picture(NamedTuple):
    """What the page shows of one image.

    - `target`: the class of each pixel; 255 where it does not count.
    - `output`: the class predicted for each pixel; of a binary task the probability p of
      foreground instead, as floor(256 p), at most 255: so p >= k / 256 where `output` >= k.
    - `histogram`: of a binary task, pixels by true class and `output`, where the scores are of
      others than are shown; by default of these.
    """

    image: UInt8[np.ndarray, "h w 3"]
    target: UInt8[np.ndarray, "h w"]
    output: UInt8[np.ndarray, "h w"]
    histogram: Int[np.ndarray, "2 256"] | None = None


class Embedding:
    """Pictures as a page carries them, one after another, so that few are in memory at a time.

    Iterating gives (index, text) of those that fit; `histograms` is complete afterwards. Each
    picture has an equal share of the room, and what those before it have left of theirs. One of a
    binary task that is larger is carried in steps of `COARSE`, and left out if that is larger too.

    - `always`: indices of the pictures that are carried whole in any case.
    - `start`: of a binary task, the `output` from which on a pixel is foreground; the steps of a
      coarse picture begin there. None for other tasks.
    - `room`: characters that all others may take.
    """

    def __init__(
        self,
        pictures: Iterable[Picture],
        count: int,
        always: Iterable[int],
        *,
        start: int | None,
        room: int,
    ):
        self._pictures = pictures
        self._count = count
        self._always = frozenset(always)
        self._start = start
        self._room = room
        self._histograms: list[bytes] = []

    def __iter__(self) -> Iterator[tuple[int, str]]:
        used = 0
        for index, picture in zip(range(self._count), self._pictures, strict=True):
            text = packed(picture)
            if self._start is not None:
                counts = picture.histogram
                if counts is None:
                    counts = histogram(picture.output, picture.target)
                self._histograms.append(counts.astype("<u4").tobytes())
            if index not in self._always:
                room = self._room * (index + 1) // self._count - used
                if self._start is not None and len(text) > room:
                    text = packed(picture, self._start)
                if len(text) > room:
                    continue
                used += len(text)
            yield index, text

    @property
    def histograms(self) -> str:
        """Each picture's histogram, deflated, in base64."""
        return _base64(zlib.compress(b"".join(self._histograms)))


def packed(picture: Picture, start: int | None = None) -> str:
    """Width, height, steps, the image as WebP, and its two maps, deflated, the latter in base64.

    The maps are differences along both axes, of which there are fewer values.

    Arguments:

    - `start`: rounds `output` down to this and what is whole steps of `COARSE` away from it.
    """
    height, width = picture.target.shape
    output, step = picture.output, 1
    if start is not None:
        step = COARSE
        below = (output.astype(int) - start) // step * step + start
        output = np.maximum(below, 0).astype(np.uint8)
    maps = np.stack([picture.target, output])
    for axis in (1, 2):
        maps = np.diff(maps, axis=axis, prepend=np.uint8(0))
    stream = io.BytesIO()
    Image.fromarray(picture.image).save(stream, "WEBP", quality=_QUALITY)
    images = _base64(stream.getvalue()), _base64(zlib.compress(maps.tobytes()))
    return " ".join([str(width), str(height), str(step), *images])


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
