"""What all files of weights share: read whole and bounded, told apart, refused with a reason."""

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from jaxtyping import Shaped

from ..errors import InputError, IntegrityError, UnavailableError
from ..storage import open_regular
from ..text import printable

T = TypeVar("T")


def read_bytes(path: str | os.PathLike[str], max_bytes: int, way_out: str) -> bytes:
    """Returns a file's content, which later checks then share.

    Raises InputError if it is no file, IntegrityError if it is far too large, UnavailableError if
    it cannot be read.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: is no file. {way_out}")
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise IntegrityError(
                    f"{path}: {size} bytes are too many; {max_bytes} are the most.\n{way_out}"
                )
            return file.read(size)
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read: {error.strerror}.") from error


def read_parsed(
    path: str | os.PathLike[str], parse: Callable[[bytes], T], max_bytes: int, way_out: str
) -> tuple[bytes, T]:
    """Returns a file's content and what `parse` makes of it; errors name the file and a way out."""
    data = read_bytes(path, max_bytes, way_out)
    try:
        return data, parse(data)
    except IntegrityError as error:
        raise IntegrityError(f"{path}: {error}.\n{way_out}") from None


def is_safetensors(data: bytes) -> bool:
    """Says whether the bytes start like a safetensors file with a header under 64 KiB.

    No pickle does: it has no six bytes of zero from the third on.
    """
    return data[2:9] == b"\0\0\0\0\0\0{"


def refuse_not_finite(arrays: Iterable[tuple[str, Shaped[np.ndarray, "..."]]]) -> None:
    """Raises IntegrityError with the names of arrays that hold NaN or infinity."""
    refuse_list(
        "it holds NaN or infinity in",
        [name for name, array in arrays if not np.isfinite(array).all()],
    )


def refuse_list(what: str, items: list[str], limit: int = 76) -> None:
    """Raises IntegrityError with the items, up to a limit, if there are any."""
    if items:
        more = f"; and {len(items) - limit} more" if len(items) > limit else ""
        raise IntegrityError(f"{what} {printable('; '.join(items[:limit]))}{more}")


def kind(data: bytes) -> str:
    """Returns what a file that is no pickle seems to be."""
    start = data[:200].lstrip().lower()
    if not data:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file that it stands for (`git lfs pull` gets that)"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file that it leads to"
    return "a file"
