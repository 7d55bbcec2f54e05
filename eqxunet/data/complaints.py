"""What is wrong with files, said once however many they are."""

from collections.abc import Iterable, Sequence
from pathlib import PurePath

from ..errors import InputError
from ..text import printable

_MOST = 10
_LINES = 10
_LONGEST = 200  # characters; a line of a list may hold millions


class FileError(InputError):
    """A file that cannot be used.

    Arguments:

    - `file`: its path, or what it is called.
    - `complaint`: what is wrong with it, and the way out.
    """

    def __init__(self, file: str, complaint: str):
        super().__init__(printable(f"{file}: {complaint}"))
        self.file, self.complaint = file, complaint


def summarised(errors: Iterable[FileError]) -> list[str]:
    """A line for each complaint, of one file or of several in one folder."""
    files: dict[tuple[PurePath, str], list[str]] = {}
    for error in errors:
        path = PurePath(error.file)
        files.setdefault((path.parent, error.complaint), []).append(path.name)
    return [_line(folder, names, complaint) for (folder, complaint), names in files.items()]


def unusable(errors: Sequence[FileError], count: int) -> InputError:
    """The error that lists what is wrong with some of so many examples."""
    lines = summarised(errors)
    more = [f"and {len(lines) - _LINES} lines more"] if len(lines) > _LINES else []
    what = f"{len(errors)} of {count} examples cannot be used:"
    return InputError("\n".join([what, *lines[:_LINES], *more]))


def _line(folder: PurePath, names: Sequence[str], complaint: str) -> str:
    if len(names) == 1:
        return printable(f"{folder / names[0]}: {complaint}")
    where = f"{folder}: " if folder.name else ""  # not every source is of files
    return printable(f"{where}{len(names)} files: {complaint}: {some_of(names, 3)}")


def some_of(items: Sequence[str], most: int = _MOST) -> str:
    """The first items as one line that can be shown, then how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(_short, items[:most])) + more


def _short(item: str) -> str:
    return printable(item if len(item) <= _LONGEST else f"{item[:_LONGEST]}...")
