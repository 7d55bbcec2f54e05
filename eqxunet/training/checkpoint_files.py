"""One checkpoint on the disk: named arrays in Orbax and a note beside them, with digests of all of
it, since Orbax reads a flipped bit back without a word."""

import errno
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped
from orbax.checkpoint import v1 as ocp

from ..errors import IntegrityError, UnavailableError
from ..storage import delete, is_partial, sync_folder

SCHEMA = 2
"""Of the note. Every reader knows a newer one by its `schema`, once its `sha256` says that this is
no flipped bit: so every later schema keeps both."""


_NOTE = "note.json"  # within a checkpoint


_PASSING = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT)


class Damaged(Exception):
    """A checkpoint is not what was saved."""


class Note(NamedTuple):
    """What a checkpoint holds beside its arrays, verified."""

    metrics: dict[str, float]
    about: dict[str, Any]
    digests: dict[str, str]


def write(
    path: Path,
    step: int,
    arrays: Mapping[str, Shaped[np.ndarray, "..."]],
    values: Mapping[str, Any],
) -> None:
    """Writes a checkpoint, and puts all of it on the disk before it takes its path.

    Raises whatever Orbax and TensorStore do, and leaves what `is_unfinished` then.
    """
    digests = {name: _digest(array) for name, array in arrays.items()}
    note: dict[str, Any] = {"schema": SCHEMA, "step": step, **values, "arrays": digests}
    note["sha256"] = _seal(note)
    unfinished = path.with_name(f".{path.name}.partial")
    # Otherwise Orbax's threads wait 20 minutes for a folder that cannot be made.
    options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    # From which readers of the first schema know that it is newer.
    first: dict[str, Any] = {"schema": SCHEMA, "sha256": {}}
    with _quiet(), ocp.Context(async_options=options):
        ocp.save(_absolute(unfinished), dict(arrays), custom_metadata=first, overwrite=True)
    (unfinished / _NOTE).write_text(json.dumps(note))
    _sync(unfinished)
    if os.path.lexists(path):  # damaged, or of a training that went on elsewhere
        remove(path)
    unfinished.rename(path)
    sync_folder(path.parent)


def read_note(path: Path) -> Note:
    """Reads and verifies all but the arrays.

    Raises Damaged, IntegrityError where a newer eqxunet wrote it, and UnavailableError where it may
    be read another time.
    """
    with _reading(path):
        if not (path / _NOTE).exists():
            return _read_schema_1(path)
        note = json.loads((path / _NOTE).read_bytes())
        if note.pop("sha256") != _seal(note):
            raise ValueError("it notes something else than was saved")
        if note["schema"] > SCHEMA:
            raise IntegrityError(f"{path}: is of a newer eqxunet: upgrade eqxunet to read it")
        if str(note["step"]) != path.name:
            raise ValueError(f"it is step {note['step']}")
        return Note(note["metrics"], note["about"], note["arrays"])


def _read_schema_1(path: Path) -> Note:
    """Its digests are of the arrays alone."""
    kept: Any = ocp.metadata(_absolute(path)).custom_metadata
    if kept["schema"] != 1:
        raise ValueError(f"no {_NOTE}")
    metrics = {}
    if (path / "metrics").exists():
        metrics = json.loads((path / "metrics" / "metrics").read_bytes())
    values = {name: float(value) for name, value in metrics.items() if name != "step"}
    return Note(values, {}, dict(kept["sha256"]))


def read_arrays(path: Path, digests: Mapping[str, str]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Reads the arrays that have these digests; raises Damaged and UnavailableError."""
    with _reading(path):
        # Without a template, to whose types and shapes Orbax would cast what is stored.
        stored: Any = ocp.load(_absolute(path))
        arrays = {name: np.asarray(array) for name, array in stored.items()}
        found = {name: _digest(array) for name, array in arrays.items()}
        wrong = sorted({name for name, _ in found.items() ^ digests.items()})
        if wrong:
            raise ValueError(f"not what was saved: {', '.join(wrong)}")
        return arrays


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        with _quiet():
            yield
    except (IntegrityError, MemoryError):
        raise
    except OSError as error:
        if error.errno in _PASSING:  # what is there may be whole, and must not be removed
            raise UnavailableError(
                f"{path}: cannot be read ({error.strerror}); mend that, or name another run"
            ) from error
        raise Damaged(f"step {path.name} cannot be read: {brief(error)}") from error
    # Orbax and TensorStore raise whatever they like over damaged files.
    except Exception as error:
        raise Damaged(f"step {path.name} cannot be read: {brief(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from logging, with tracebacks, what it raises as well."""

    def is_of_others(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts

    logger = logging.getLogger("absl")
    logger.addFilter(is_of_others)
    try:
        yield
    finally:
        logger.removeFilter(is_of_others)


def _silence_echoes() -> None:
    """Of several arrays that fail, Orbax raises the first one's error and closes its event loop;
    about the others, TensorStore's threads and asyncio complain on stderr some time later."""
    complain = sys.unraisablehook

    def complain_of_others(about: Any) -> None:
        if about.object is not None or str(about.exc_value) != "Event loop is closed":
            complain(about)

    def is_of_others(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not (isinstance(error, ValueError) and 'local file "' in str(error))

    sys.unraisablehook = complain_of_others
    logging.getLogger("asyncio").addFilter(is_of_others)


_silence_echoes()


def brief(error: Exception) -> str:
    """An error on one line, not too long; of TensorStore's the cause, with which they end."""
    text = re.split(r" \[\w+=", " ".join(str(error).split()))[0].rsplit('": ', 1)[-1]
    if isinstance(error, KeyError):
        text = f"no {text}"
    return text if len(text) <= 160 else f"...{text[-160:]}"


def is_unfinished(path: Path) -> bool:
    """Whether something is what a writer left that was killed, or had no space."""
    return is_partial(path) or ".orbax-checkpoint-tmp" in path.name


def remove(path: Path) -> None:
    """Removes a checkpoint, for readers all of it at once."""
    aside = path.with_name(f".{path.name}.removed.partial")
    delete(aside)
    path.rename(aside)
    delete(aside)


def _sync(folder: Path) -> None:
    """Puts a folder and all in it on the disk; of Orbax's files only TensorStore's are there."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(parent) / name).open("rb+") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _seal(note: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()


def _digest(array: Shaped[np.ndarray, "..."]) -> str:
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
