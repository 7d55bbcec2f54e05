"""A split in pixels, as training and evaluation take it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from ..config import Labels
from .kinds import CLASSES, check_values, count_classes
from .masks import MaskSummary


@dataclass(frozen=True)
class Split:
    """A decoded split, mapped to memory; read-only.

    Arguments:

    - `images`: RGB.
    - `labels`: what each pixel shows, in values of `kind`.
    - `names`: a name an example, in the source's order.
    - `kind`: what the labels' values are; see `config.Labels`.
    - `classes`: names of the classes; by default those that `kind` has, or "0", "1", ... up to
      the largest index in `labels`.
    - `identity`: a digest of the pixels and names.
    - `masks`: what the masks held, at their own size.
    - `notes`: what the user should know of all this.

    Raises InputError where labels hold a value that `kind` does not have.
    """

    images: UInt8[np.ndarray, "n size size 3"]
    labels: UInt8[np.ndarray, "n size size"]
    names: tuple[str, ...]
    kind: Labels = "trimap"
    classes: tuple[str, ...] = ()
    identity: str = ""
    masks: MaskSummary | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        check_values(self.labels, self.kind, self.classes)
        if not self.classes:
            classes = CLASSES.get(self.kind) or tuple(map(str, range(count_classes(self.labels))))
            object.__setattr__(self, "classes", classes)

    def __len__(self) -> int:
        return len(self.names)
