"""Lists in a folder: which images belong to which split, and what pets they show."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from ..config import SplitName
from ..errors import InputError
from .complaints import some_of
from .kinds import Species

FEWEST = 3
"""Images that make a training, a validation and a test split."""

OXFORD = ("annotations/trainval.txt", "annotations/test.txt")
_OXFORD_FIELDS = re.compile(r"\s+\d+\s+(\d+)\s+\d+$")
_SPECIES: dict[str, Species] = {"1": "cat", "2": "dog"}


def oxford_splits(root: Path) -> dict[SplitName, list[str]]:
    """Cuts the official lists as `eqxunet.data.oxford` does.

    Raises InputError where there is neither, or one cannot be read.
    """
    if not any((root / name).exists() for name in OXFORD):
        raise InputError(f"{root}: has neither {OXFORD[0]} nor {OXFORD[1]}; add lists of names")
    trainval, test = (read_names(root, name) if (root / name).exists() else [] for name in OXFORD)
    return {
        "train": [name for i, name in enumerate(sorted(trainval)) if i % 10],
        "val": sorted(trainval)[::10],
        "test": test,
    }


def oxford_species(root: Path) -> dict[str, Species]:
    """The species that the official lists give for each name.

    Raises InputError that lists names without one.
    """
    species: dict[str, Species] = {}
    for path in (root / name for name in OXFORD if (root / name).exists()):
        without: list[str] = []
        for line in _entries(root, str(path.relative_to(root))):
            fields = _OXFORD_FIELDS.search(line)
            if fields and fields[1] in _SPECIES:
                species[_name(line)] = _SPECIES[fields[1]]
            else:
                without.append(_name(line))
        if without:
            raise InputError(
                f"{path}: says of {len(without)} images no species: {some_of(without)}; write "
                "`name class species breed` on each line, where species is 1 for a cat and 2 for "
                "a dog, or choose --labels trimap"
            )
    return species


def plain_splits(root: Path, images: Collection[str]) -> dict[SplitName, list[str]]:
    """Reads `train.txt`, `val.txt` and `test.txt`, or cuts by a hash where there is none of them.

    Raises InputError where one cannot be read.
    """
    splits: dict[SplitName, list[str]] = {"train": [], "val": [], "test": []}
    lists: list[SplitName] = [split for split in splits if (root / f"{split}.txt").exists()]
    for split in lists:
        splits[split] = read_names(root, f"{split}.txt")
    if lists:
        return splits
    # Which images a split holds depends on all names, so that its share is exact.
    ranked = sorted(images, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    if len(ranked) < FEWEST:
        return splits
    tenth = max(1, round(len(ranked) / 10))
    splits["val"] = sorted(ranked[:tenth])
    splits["test"] = sorted(ranked[tenth : 2 * tenth])
    splits["train"] = sorted(ranked[2 * tenth :])
    return splits


def read_names(root: Path, name: str) -> list[str]:
    """Reads a name a line. A name may hold spaces; Oxford's three numbers after it are cut off.

    Raises InputError where it cannot be read, or a name stands in it twice.
    """
    names = [_name(line) for line in _entries(root, name)]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(
            f"{root / name}: names that stand in it more than once: {some_of(repeated)}"
        )
    return names


def read_lines(root: Path, name: str) -> list[str]:
    """Reads a text file of a folder, each line stripped.

    Raises InputError where it leads out of the folder, or cannot be read.
    """
    path = root / name
    if path.is_symlink() and not is_inside(root, path):
        raise InputError(f"{path}: leads out of {root} or to no file; copy the file instead")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of names ({error})") from error
    return [line.strip() for line in lines]


def is_inside(root: Path, link: Path) -> bool:
    """Whether a link leads to a file in the folder `root`."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # it dangles, or leads to itself
        return False
    return target.is_file() and target.is_relative_to(root)


def composed(name: str) -> str:
    """A name in Unicode's composed form: archives made on macOS decompose names."""
    return unicodedata.normalize("NFC", name)


def _entries(root: Path, name: str) -> list[str]:
    return [line for line in read_lines(root, name) if line and not line.startswith("#")]


def _name(line: str) -> str:
    return composed(_OXFORD_FIELDS.sub("", line))
