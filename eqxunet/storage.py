"""Files that are whole or not there, whatever ends the process or fills the disk."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UnavailableError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` once its bytes are on the disk.

    Whatever is raised meanwhile, `path` stays as it was and nothing is left beside it; a process
    that is killed leaves a file that `is_partial`. Two processes may write the same path: the last
    one's file stays.

    Raises UnavailableError where it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise UnavailableError(
            f"{path}: cannot be written ({error.strerror or error}); free space there, or name "
            "another folder"
        ) from error


def replace_text(path: Path, text: str) -> None:
    """Writes a text as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def is_partial(path: Path) -> bool:
    """Whether a file is what a killed process left of `replacing`."""
    return path.name.startswith(".") and path.suffix == ".partial"


def digest_of(values: Mapping[str, Any]) -> str:
    """The sha256 of what a JSON file holds but for its own `sha256`, in hexadecimal digits."""
    rest = {name: value for name, value in values.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Opens a file to be read. A pipe, a socket or a device, which may have no end, is refused.

    Raises OSError where it is one of these, or cannot be opened.
    """
    # Opening a pipe would wait for who writes to it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", os.fspath(path))
    return open(descriptor, "rb")


def delete(path: Path) -> None:
    """Deletes whatever is there, if anything is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def cache_folder(name: str) -> Path:
    """`eqxunet/NAME` in the user's cache folder."""
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path.home() / ".cache") / "eqxunet" / name


def sync_folder(folder: Path) -> None:
    """Puts a folder's list of names on the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
