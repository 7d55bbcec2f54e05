"""Pixels that are decoded each time they are read, so that none are kept."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, UInt8

from .decoding import decode_pair, decoding
from .example import Source

Index = int | np.integer | slice | Int[np.ndarray, " b"]


@dataclass(frozen=True)
class Undecoded:
    """Images or labels of a source, indexed as an array of them would be along its first axis.

    Arguments:

    - `size`: height and width in pixels.
    - `part`: which of both.
    """

    source: Source
    size: int
    part: Literal["images", "labels"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        channels = (3,) if self.part == "images" else ()
        return (len(self.source), self.size, self.size, *channels)

    @property
    def nbytes(self) -> int:
        """Of the array."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Index) -> UInt8[np.ndarray, "..."]:
        """Decodes one example, or several, which are stacked; raises what `pair` raises."""
        which = 0 if self.part == "images" else 1
        chosen: Any = np.arange(len(self))[index]
        if np.ndim(chosen) == 0:
            return self.pair(int(chosen))[which]
        if not len(chosen):
            return np.empty((0, *self.shape[1:]), np.uint8)
        return np.stack([self.pair(int(i))[which] for i in chosen])

    def pair(
        self, index: int
    ) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]:
        """Image and labels of one example.

        Raises InputError where it cannot be decoded, IntegrityError where it is of a damaged pack.
        """
        example = self.source[index]
        with decoding(example.image, example.mask):
            return decode_pair(example, self.size)
