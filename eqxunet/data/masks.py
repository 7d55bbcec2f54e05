"""What the masks of a split hold, in numbers; `eqxunet.data.mask_checks` judges it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from ..config import Labels
from .complaints import some_of
from .kinds import BACKGROUND, BORDER, MEANINGS, UNLABELLED

MAX_VALUES = 257
"""Distinct values of a mask that are told; one with more holds no labels."""
MAX_CLASSES = 100
"""Classes that masks of indices are thought to have; above, values are an edge's levels."""

_BACKGROUND: dict[Labels, int] = {"trimap": BACKGROUND, "species": 0, "mask": 0, "classes": 0}
_NEITHER: dict[Labels, list[int]] = {
    "trimap": [BORDER],
    "species": [3, 4],
    "mask": [],
    "classes": [UNLABELLED],
}


class Mask(NamedTuple):
    """What one mask holds.

    - `values`: the share of pixels of each of its first distinct values, in order: grey levels and
      indices as numbers, colours as `#rrggbb`.
    - `foreground`: share of its pixels that are foreground; a border is none.
    - `background`: share of its pixels that are background.
    """

    values: dict[str, float]
    foreground: float
    background: float

    @classmethod
    def of(
        cls,
        labels: UInt8[np.ndarray, "h w"],
        kind: Labels,
        values: Mapping[str, float] | None = None,
    ) -> "Mask":
        """Counts labels; `values` are those of the file, where they differ from the labels'."""
        counts = np.bincount(labels.ravel(), minlength=UNLABELLED + 1)
        background = int(counts[_BACKGROUND[kind]])
        foreground = labels.size - background - int(counts[_NEITHER[kind]].sum())
        if values is None:
            values = {str(v): float(counts[v] / labels.size) for v in np.flatnonzero(counts)}
        return cls(dict(values), foreground / labels.size, background / labels.size)


@dataclass(frozen=True)
class MaskSummary:
    """What the masks of a split hold.

    - `count`: how many there are.
    - `values`: how many masks hold each value, the most frequent values first.
    - `shares`: share of pixels of each value, mean over masks.
    - `foreground`: share of pixels, mean over masks.
    - `empty`, `full`: how many masks have no foreground, or no background.
    - `several`: names of the masks that have several values which all count as foreground.
    - `indexed`: how many of those hold class indices and 255 beside them.
    """

    kind: Labels
    count: int
    values: dict[str, int]
    shares: dict[str, float]
    foreground: float
    empty: int
    full: int
    several: list[str]
    indexed: int

    @classmethod
    def of(cls, masks: Mapping[str, Mask], kind: Labels) -> "MaskSummary":
        """Summarises masks, given by name."""
        values = Counter(value for mask in masks.values() for value in mask.values)
        shares: Counter[str] = Counter()
        for mask in masks.values():
            shares.update(mask.values)
        marks = {name: mask.values.keys() - {"0", "transparent"} for name, mask in masks.items()}
        several = [name for name, mark in marks.items() if len(mark) > 1 and kind == "mask"]
        indices = {*map(str, range(1, MAX_CLASSES + 1)), str(UNLABELLED)}
        are_indices = set().union(*marks.values()) <= indices
        count = len(masks)
        return cls(
            kind,
            count,
            dict(values.most_common()),
            {value: shares[value] / count for value in values},
            sum(mask.foreground for mask in masks.values()) / max(count, 1),
            sum(mask.foreground == 0 for mask in masks.values()),
            sum(mask.background == 0 for mask in masks.values()),
            several,
            sum(str(UNLABELLED) in marks[name] for name in several) if are_indices else 0,
        )

    def describe(self) -> list[str]:
        """Says, in lines, which values were found and what is made of them."""
        found = [f"{value} (in {count})" for value, count in self.values.items()]
        return [f"values in masks: {some_of(found)}", f"taken as: {MEANINGS[self.kind]}"]

    def indices(self) -> tuple[str, ...]:
        """Names for classes that nobody named: their indices, up to the largest."""
        found = [int(value) for value in self.values if value != str(UNLABELLED)]
        return tuple(map(str, range(max(found, default=-1) + 1)))

    def present(self, classes: Sequence[str]) -> list[str]:
        """The classes that some mask holds; `kind` is `"classes"` or `"species"`."""
        return [name for index, name in enumerate(classes) if str(index) in self.values]
