"""The classes of a plain folder: their names, and the colours that masks paint them in."""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .complaints import some_of
from .kinds import UNLABELLED
from .lists import read_lines

NAMES, COLOURS = "classes.txt", "classes.csv"
_HEADER = ["name", "r", "g", "b"]


@dataclass(frozen=True)
class Classes:
    """Classes in the order of their indices.

    Arguments:

    - `names`: none where nobody named them.
    - `colours`: red, green and blue as 0xrrggbb; none where masks hold indices.
    - `file`: where the names are from, for errors.
    """

    names: tuple[str, ...] = ()
    colours: tuple[int, ...] = ()
    file: str = ""


def read_classes(root: Path) -> Classes:
    """Reads `classes.txt` (a name a line) or `classes.csv` (name,r,g,b) where a folder has one.

    Raises InputError where the file is not in order, or there are both.
    """
    names, colours = root / NAMES, root / COLOURS
    if names.exists() and colours.exists():
        raise InputError(f"{root}: has both {NAMES} and {COLOURS}; keep one of them")
    if colours.exists():
        rows = _read_colours(root, colours)
        classes = Classes(tuple(rows), tuple(rows.values()), str(colours))
        if repeated := [f"#{c:06x}" for c, n in Counter(classes.colours).items() if n > 1]:
            raise InputError(f"{colours}: colours of several classes: {some_of(repeated)}")
    elif names.exists():
        lines = "\n".join(read_lines(root, NAMES)).rstrip("\n").split("\n")
        classes = Classes(tuple(lines), file=str(names))
    else:
        return Classes()
    _check_names(classes)
    return classes


def _read_colours(root: Path, path: Path) -> dict[str, int]:
    header, *lines = read_lines(root, COLOURS) or [""]
    if [field.strip().lower() for field in header.split(",")] != _HEADER:
        raise InputError(
            f"{path}: its first line must be {','.join(_HEADER)}, not {header[:200]!r}"
        )
    rows: dict[str, int] = {}
    for number, line in enumerate(lines, start=2):
        if not line:
            continue
        try:
            name, *channels = (field.strip() for field in next(csv.reader([line])))
            red, green, blue = (bytes([int(channel)])[0] for channel in channels)
        except (ValueError, csv.Error) as error:
            raise InputError(
                f"{path}: line {number} is not a name and three numbers from 0 to 255: "
                f"{some_of([line])}"
            ) from error
        if name in rows:
            raise InputError(f"{path}: names that stand in it more than once: {some_of([name])}")
        rows[name] = red << 16 | green << 8 | blue
    return rows


def _check_names(classes: Classes) -> None:
    if not all(classes.names):
        raise InputError(f"{classes.file}: a class has no name; write one on each line")
    if repeated := [name for name, count in Counter(classes.names).items() if count > 1]:
        raise InputError(
            f"{classes.file}: names that stand in it more than once: {some_of(repeated)}"
        )
    if len(classes.names) > UNLABELLED:
        raise InputError(f"{classes.file}: {len(classes.names)} classes; {UNLABELLED} are the most")
