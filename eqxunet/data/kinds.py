"""What the values of labels are, kind by kind; `config.Labels` lists the kinds."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from ..config import Labels
from ..errors import InputError
from .complaints import some_of

Species = Literal["cat", "dog"]

PET, BACKGROUND, BORDER = 1, 2, 3
"""Values of a trimap."""
UNLABELLED = 255
"""Value of a pixel that has no class."""

CLASSES: dict[Labels, tuple[str, ...]] = {
    "trimap": ("background", "pet", "border"),
    "species": ("background", "cat", "dog"),
    "mask": ("background", "foreground"),
}
"""Names of the classes that a kind has; `"classes"` has those of its folder."""

MEANINGS: dict[Labels, str] = {
    "trimap": "1 is pet, 2 is background, 3 is border",
    "species": "0 is background, 1 is cat, 2 is dog, 3 and 4 are the borders of a cat and a dog",
    "mask": "0 (black, transparent) is background, anything else foreground",
    "classes": f"the index of a class, {UNLABELLED} is not labelled",
}
_RANGES: dict[Labels, tuple[int, int]] = {"trimap": (1, 3), "species": (0, 4), "mask": (0, 1)}
_WAYS_OUT: dict[Labels, str] = {
    "trimap": 'kind="mask" takes masks of 0 and 1',
    "species": 'kind="classes" takes indices of any classes',
    "mask": "(labels > 0).astype(np.uint8) makes a mask of 0 and 1",
}


def check_values(
    labels: UInt8[np.ndarray, "n h w"], kind: Labels, classes: Sequence[str] = ()
) -> None:
    """Looks whether labels hold values of their kind only.

    Arguments:

    - `classes`: names of the classes, where they are known; `kind="classes"` only.

    Raises InputError where they hold another, with the way out.
    """
    if kind == "classes":
        if classes and (count := count_classes(labels)) > len(classes):
            raise InputError(
                f"labels hold the class index {count - 1}, but the names are of {len(classes)} "
                f"classes ({some_of(classes)}); name every class, or set pixels that have none to "
                f"{UNLABELLED}"
            )
        return
    low, high = _RANGES[kind]
    if labels.size and not low <= labels.min() <= labels.max() <= high:
        raise InputError(
            f'labels of kind "{kind}" hold the values {some_of(_distinct(labels))}, where '
            f"{low} to {high} are known; {_WAYS_OUT[kind]}"
        )


def count_classes(labels: UInt8[np.ndarray, "n h w"]) -> int:
    """One more than the largest class index."""
    # Image by image, which copies little; pixels without label wrap around to 0.
    return max((int((one + np.uint8(1)).max(initial=0)) for one in labels), default=0)


def species_of(trimap: UInt8[np.ndarray, "h w"], species: Species) -> UInt8[np.ndarray, "h w"]:
    """Turns the trimap of a cat or a dog into labels of kind `"species"`."""
    pet = CLASSES["species"].index(species)
    values = np.zeros(4, np.uint8)
    values[PET], values[BORDER] = pet, pet + 2
    return values[trimap]


def _distinct(labels: UInt8[np.ndarray, "n h w"]) -> list[str]:
    return [str(value) for value in np.unique(labels)]
