"""JSON in a run's directory: whole when it is written, and mistrusted when it is read."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, UnavailableError
from ..storage import open_regular, replace_text
from ..text import printable

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NO_FILE = (errno.EINVAL, errno.ENXIO)  # of `open_regular`, and of a socket


def write_json(path: Path, values: Any) -> None:
    """Writes a file as `storage.replacing` does.

    Raises ValueError for a number that JSON does not have.
    """
    replace_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, *, most: int = 2**20) -> Any:
    """Reads what a file of at most so many bytes holds.

    Raises FileNotFoundError where there is none, IntegrityError where it holds no JSON, and what
    `read_bytes` raises.
    """
    try:
        return parse(read_bytes(path, most=most))
    except ValueError as error:
        raise IntegrityError(f"{path}: damaged, or not written by eqxunet ({error})") from error


def read_bytes(path: Path, *, most: int) -> bytes:
    """Reads a regular file of at most so many bytes, without waiting for anybody.

    Raises FileNotFoundError where there is none, IntegrityError for something else than a file or
    a larger one, UnavailableError where it cannot be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise IntegrityError(
                    f"{path}: has {size:,} bytes, more than eqxunet would have written"
                )
            return file.read(most)
    except OSError as error:
        if error.errno in _ABSENT:
            raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
        if error.errno in _NO_FILE:
            raise IntegrityError(f"{path}: is no file, as eqxunet writes there") from error
        raise UnavailableError(f"{path}: cannot be read ({error.strerror})") from error


def parse(content: bytes) -> Any:
    """What bytes of JSON say; raises ValueError where they are none, or hold no finite number."""
    try:
        return json.loads(
            content.decode("utf-8"), parse_constant=_finite_number, parse_float=_finite_number
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_number(value: object) -> bool:
    """Whether a value is a number that a float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def is_whole(value: object, least: int = 0) -> bool:
    """Whether a value is a whole number that counts something."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


def shown(error: object) -> str:
    """What an error about a file says of its content, on one line and not too long."""
    text = printable(str(error))
    return text if len(text) <= 300 else text[:297] + "..."


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no number that JSON has")
    return value
