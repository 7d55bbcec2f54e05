"""What the masks of a split hold, and whether that can be meant."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..config import SplitName
from ..errors import InputError
from .source import listed

Labels = Literal["trimap", "binary"]

MAX_VALUES = 257
"""Distinct values of a mask that are told; one with more holds no labels."""
MOSTLY = 0.9
"""Share of foreground above which masks are suspected of being the wrong way round."""
_MOST_CLASSES = 100
_MEANINGS = {
    "trimap": "1 is pet, 2 is background, 3 is border",
    "binary": "0 (black, transparent) is background, anything else foreground",
}


class Mask(NamedTuple):
    """What one mask holds.

    - `values`: its first distinct values, in order: grey levels as numbers, colours as `#rrggbb`.
    - `foreground`: share of its pixels that are foreground; a trimap's border is none.
    - `background`: share of its pixels that are background.
    """

    values: tuple[str, ...]
    foreground: float
    background: float


@dataclass(frozen=True)
class MaskSummary:
    """What the masks of a split hold.

    - `count`: how many there are.
    - `values`: how many masks hold each value, the most frequent values first.
    - `foreground`: share of pixels, mean over masks.
    - `empty`, `full`: how many masks have no foreground, or no background.
    - `several`: how many masks have more than one value that counts as foreground.
    - `indexed`: how many of those hold class indices and 255 beside them.
    """

    labels: Labels
    count: int
    values: dict[str, int]
    foreground: float
    empty: int
    full: int
    several: int
    indexed: int

    @classmethod
    def of(cls, masks: Iterable[Mask], labels: Labels) -> "MaskSummary":
        """Summarises masks."""
        masks = list(masks)
        kinds = [set(mask.values) - {"0", "transparent"} for mask in masks]
        # Above them, values between 0 and 255 are an edge's, smooth or compressed.
        are_indices = set().union(*kinds) <= {*map(str, range(1, _MOST_CLASSES + 1)), "255"}
        several = [kind for kind in kinds if len(kind) > 1 and labels == "binary"]
        return cls(
            labels,
            len(masks),
            dict(Counter(value for mask in masks for value in mask.values).most_common()),
            sum(mask.foreground for mask in masks) / max(len(masks), 1),
            sum(mask.foreground == 0 for mask in masks),
            sum(mask.background == 0 for mask in masks),
            len(several),
            sum("255" in kind for kind in several) if are_indices else 0,
        )

    def describe(self) -> list[str]:
        """Says, in lines, which values were found and what is made of them."""
        found = [f"{value} (in {count})" for value, count in self.values.items()]
        return [f"values in masks: {listed(found)}", f"taken as: {_MEANINGS[self.labels]}"]

    def check(self, split: SplitName) -> list[str]:
        """Returns warnings of what may not be meant.

        Raises: `InputError` of what cannot be meant, with the way out.
        """
        masks = f"the {self.count} {split} masks" if split != "all" else f"the {self.count} masks"
        values = listed(_in_order(self.values))
        if self.indexed:
            raise InputError(
                f"{self.indexed} of {masks} hold 255 beside class indices ({values}): 255 often "
                "means `not labelled`, but here it would count as foreground; set those pixels to "
                "0, or to the index of the foreground"
            )
        if 0 < self.count == self.full and (split == "train" or self.several):
            raise InputError(
                f"{masks} have no background (values: {values}), where "
                f"{_MEANINGS[self.labels]}; save them with background "
                f"{2 if self.labels == 'trimap' else 0}"
                + (
                    ", or put trimaps of 1, 2, 3 into annotations/trimaps/"
                    if set(self.values) <= {"1", "2", "3"} and self.labels == "binary"
                    else ""
                )
            )
        if 0 < self.count == self.empty and split == "train":
            raise InputError(
                f"{masks} are all empty (values: {values}), where "
                f"{_MEANINGS[self.labels]}; there is nothing to learn from them"
            )
        warnings = []
        if not self.count:
            return warnings
        if self.empty == self.count:
            warnings.append(f"{masks} are all empty, so their scores say little")
        elif self.full == self.count:
            warnings.append(f"{masks} have no background, so their scores say little")
        elif self.full:
            warnings.append(f"{self.full} of {masks} have no background")
        if self.several:
            warnings.append(
                f"{self.several} of {masks} hold several values beside 0, which all count as "
                f"foreground: {listed(_in_order(self.values.keys() - {'0', 'transparent'}))}"
            )
        if self.foreground > MOSTLY and self.full < self.count:
            warnings.append(
                f"{self.foreground:.0%} of the pixels of {masks} are foreground: are foreground "
                "and background exchanged?"
            )
        return warnings


def _in_order(values: Iterable[str]) -> list[str]:
    """Numbers by their size, then colours."""
    return sorted(values, key=lambda v: (not v.isdigit(), int(v) if v.isdigit() else 0, v))
