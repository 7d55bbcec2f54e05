"""What the cache of decoded pixels holds, to look at and to remove."""

import operator
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UnavailableError
from ..storage import cache_folder
from ..text import printable
from .cache import INDEX, code_digest, read_index

_NAME = re.compile(r"([0-9a-f]{32})(\.partial)?")


@dataclass(frozen=True)
class Entry:
    """One decoded split.

    Arguments:

    - `folder`: where it is.
    - `origin`: data and split; empty where that is not known.
    - `kind`, `size`, `count`: of its labels, pixels a side, and images.
    - `bytes`: on disk.
    - `used`: when it was last loaded, in seconds since 1970.
    - `is_stale`: whether nothing will load it again: it was made by other code or other versions
      of libraries, or not to its end.
    """

    folder: Path
    origin: str
    kind: str
    size: int
    count: int
    bytes: int
    used: float
    is_stale: bool


def list_entries(cache_dir: Path | None = None) -> list[Entry]:
    """Lists what a cache holds, what was used last first.

    Arguments:

    - `cache_dir`: as in `load_split`.
    """
    cache_dir = cache_dir or cache_folder("data")
    if not cache_dir.is_dir():
        return []
    code = code_digest()
    folders = [path for path in cache_dir.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted((_entry(folder, code) for folder in folders), key=lambda entry: -entry.used)


def remove_entries(entries: Iterable[Entry]) -> list[Entry]:
    """Removes entries but those that a process is writing; returns the ones removed.

    A process that has mapped an entry keeps its pixels until it ends, and one that is about to
    load it decodes anew. Lock files stay: another process may be waiting for one.

    Raises UnavailableError where a file cannot be removed.
    """
    removed = []
    for entry in entries:
        key = entry.folder.name.removesuffix(".partial")
        try:
            with FileLock(entry.folder.with_name(f"{key}.lock"), timeout=0):
                shutil.rmtree(entry.folder)
        except Timeout:
            continue
        except OSError as error:
            raise UnavailableError(f"{entry.folder}: cannot be removed ({error})") from error
        removed.append(entry)
    return removed


def _entry(folder: Path, code: str) -> Entry:
    size = _bytes(folder)
    try:
        index = read_index(folder)
        used = (folder / INDEX).stat().st_mtime
        origin, kind = printable(index["origin"]), printable(index["kind"])
        count, pixels = len(index["names"]), operator.index(index["size"])
        return Entry(folder, origin, kind, pixels, count, size, used, index["code"] != code)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # of other code, or torn
        used = folder.stat().st_mtime if folder.exists() else 0.0
        return Entry(folder, "", "", 0, 0, size, used, True)


def _bytes(folder: Path) -> int:
    try:
        return sum(path.lstat().st_size for path in folder.iterdir())
    except FileNotFoundError:  # another process has removed it meanwhile
        return 0
