"""A split in pixels, as training and evaluation take it."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from ..config import Labels
from .kinds import CLASSES, check_values, count_classes
from .masks import MaskSummary
from .undecoded import Undecoded


@dataclass(frozen=True)
class Split:
    """A split, decoded and mapped to memory, or decoded as it is read; read-only.

    Arguments:

    - `images`: RGB.
    - `labels`: what each pixel shows, in values of `kind`.
    - `names`: a name an example, in the source's order.
    - `kind`: what the labels' values are; see `config.Labels`.
    - `classes`: names of the classes; by default those that `kind` has, or "0", "1", ... up to
      the largest index in `labels`.
    - `identity`: a digest of the pixels and names, or where nothing is decoded of the source.
    - `masks`: what the masks held, at their own size.
    - `notes`: what the user should know of all this.

    Raises InputError where labels hold a value that `kind` does not have.
    """

    images: UInt8[np.ndarray, "n size size 3"] | Undecoded
    labels: UInt8[np.ndarray, "n size size"] | Undecoded
    names: tuple[str, ...]
    kind: Labels = "trimap"
    classes: tuple[str, ...] = ()
    identity: str = ""
    masks: MaskSummary | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if isinstance(self.labels, Undecoded):
            return  # each mask is checked as it is decoded
        check_values(self.labels, self.kind, self.classes)
        if not self.classes:
            classes = CLASSES.get(self.kind) or tuple(map(str, range(count_classes(self.labels))))
            object.__setattr__(self, "classes", classes)

    def __len__(self) -> int:
        return len(self.names)


def crc32_of(names: Sequence[str]) -> int:
    """The checksum of names that identities end in."""
    return zlib.crc32(os.fsencode("\0".join(names)))


def is_of(identity: str, names: Sequence[str]) -> bool:
    """Whether the identity of `Split` is of examples with these names."""
    return identity.rpartition("-")[2] == f"{crc32_of(names):08x}"


def are_alike(identity: str, other: str) -> bool:
    """Whether two identities of `Split` can be of the same examples.

    Of one with and one without pixels, it is the names that are compared.
    """
    if identity.count("-") != other.count("-"):
        identity, other = (each.rpartition("-")[2] for each in (identity, other))
    return identity == other
