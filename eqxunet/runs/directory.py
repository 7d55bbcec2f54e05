"""Run directories: what may be written where, and by whom."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import BusyError, EqxunetError, InputError, UnavailableError
from ..storage import delete, is_partial
from .config import RunConfig, has_checkpoints

RUNS = Path("runs")
_LOCK = ".lock"
# What a run writes: where, and by which name; last what shows that it is one.
_OURS = (
    ("checkpoints/*", r"\d+([.-].*)?"),
    ("eval/*/*", r"metrics\.json|per_image\.csv|examples\.png|report\.html"),
    ("snapshots/*", r"\d+\.png|partial"),
    ("tensorboard/*", r"events\.out\.tfevents\..*"),
    ("*", r"metrics\.jsonl(\.damaged)?|(curves|predictions|progress)\.png|calibration\.json"),
    ("*", r"config\.json"),
)


def new_directory(encoder: str) -> Path:
    """Makes a directory for a new run, named by the time: `runs/20260131-120000-scratch`.

    Raises UnavailableError where it cannot be made.
    """
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{encoder}"
    directory, number = RUNS / name, 1
    while True:
        try:
            RUNS.mkdir(exist_ok=True)
            directory.mkdir()
            return directory
        except FileExistsError as error:
            if not RUNS.is_dir():
                raise _unwritable(RUNS, error) from error
            number += 1  # another training began in this second
            directory = RUNS / f"{name}-{number}"
        except OSError as error:
            raise _unwritable(directory, error) from error


def check_path(directory: Path) -> None:
    """Raises InputError where Orbax and TensorStore would write below a path what nobody can read.

    Orbax takes names in brackets for patterns, and TensorStore knows no bytes but UTF-8.
    """
    try:
        str(directory).encode()
        is_possible = not re.search(r"\[[^/]*\]", str(directory))
    except UnicodeEncodeError:
        is_possible = False
    if not is_possible:
        raise InputError(
            f"{directory}: checkpoints cannot be kept below a path with [...] in a name, or with a "
            "name that is no UTF-8; name another folder (--run)"
        )


def check_directory(directory: Path, *, overwrite: bool) -> None:
    """Sees to it that a new run in a directory destroys nothing but, with `overwrite`, a run.

    One that ended before anything was saved is nothing.

    Raises InputError where the directory holds something else, or a run that is not to be
    overwritten, and what `RunConfig.read` raises.
    """
    if directory.is_symlink() and not directory.exists():
        raise InputError(f"{directory}: is a link that leads nowhere; remove it, or name another")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; name a directory for the run")
    if directory.name == "latest" and not directory.is_symlink():
        raise InputError(
            f"{directory}: `latest` is the link to the latest run; choose another name"
        )
    if not directory.is_dir() or _is_empty(directory):
        return
    if not os.path.lexists(directory / "config.json"):
        if has_checkpoints(directory):
            raise InputError(
                f"{directory}: holds checkpoints, but its config.json is lost; put that back to go "
                "on with them, move them away, or name a new directory for the run"
            )
        raise InputError(
            f"{directory}: is not empty, and no run of eqxunet; name a new directory for the run"
        )
    RunConfig.read(directory)
    names = {path.name for path in directory.iterdir() if not is_partial(path)}
    is_begun = not names <= {_LOCK, "config.json", "checkpoints"} or has_checkpoints(directory)
    if is_begun and not overwrite:
        raise InputError(
            f"{directory} holds a run already: --resume goes on with it, --overwrite deletes it"
        )


def check_latest(directory: Path | None) -> None:
    """Sees to it that `runs/latest` can lead to a run, by default a new one in `runs/`.

    Raises InputError where it is something else than a link, which stays as it is.
    """
    if directory is not None and directory.parent != RUNS.resolve():
        return
    link = RUNS / "latest"
    if os.path.lexists(link) and not link.is_symlink():
        raise InputError(
            f"{link}: has the name of the link to the latest run, and is none; rename it"
        )


def check_room(directory: Path, size: int) -> None:
    """Sees to it that a directory can be written to, and that a checkpoint has room there.

    Arguments:

    - `size`: of a checkpoint, in bytes.

    Raises UnavailableError where it cannot be kept.
    """
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise _unwritable(directory, error) from error
    if free < size:
        raise UnavailableError(
            f"{directory}: a checkpoint takes {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are "
            "free there; free space, or name another --run"
        )


def clear(directory: Path) -> tuple[list[str], list[str]]:
    """Deletes what a run wrote into its directory, last what shows that it is one.

    Returns what was deleted, and what was not, since no run writes it.

    Raises UnavailableError where something cannot be deleted.
    """
    deleted: list[str] = []
    try:
        for pattern, name in _OURS:
            for path in sorted(directory.glob(pattern)):
                if re.fullmatch(name, path.name):
                    delete(path)
                    deleted.append(path.relative_to(directory).as_posix())
        kept: list[str] = []
        for name in ("checkpoints", "eval", "snapshots", "tensorboard"):
            kept += _without_empty(directory / name, directory)
        for path in directory.glob(".*.partial"):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"{error.filename or directory}: cannot be deleted ({error.strerror}); delete it, or "
            "name another --run"
        ) from error
    return deleted, kept


def _without_empty(folder: Path, directory: Path) -> list[str]:
    """Removes a folder and those in it where nothing is left in them; returns what is left."""
    if folder.is_symlink() or not folder.is_dir():
        return [folder.relative_to(directory).as_posix()] if os.path.lexists(folder) else []
    left: list[str] = []
    for path in sorted(folder.iterdir()):
        if is_partial(path):
            delete(path)
        else:
            left += _without_empty(path, directory)
    if not left:
        folder.rmdir()
    return left


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds a run directory for this process; a dead process's lock counts for nothing.

    Raises BusyError where another process holds it, UnavailableError where it cannot be written.
    """
    lock = FileLock(directory / _LOCK)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise BusyError(
            f"{directory}: another process is training in it; wait for it, or name another run"
        ) from error
    except OSError as error:
        raise _unwritable(directory, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # where another process comes into it
            if _is_empty(directory):  # a run that never started leaves nothing
                for path in directory.iterdir():
                    path.unlink()
                directory.rmdir()
                if directory.parent == Path(os.path.realpath(RUNS)):
                    directory.parent.rmdir()  # where it holds no other runs
        lock.release()


@contextmanager
def busy_first(directory: Path) -> Iterator[None]:
    """What is wrong with a directory that another process is changing is that it is busy.

    Raises BusyError in place of other errors where another process holds it.
    """
    try:
        yield
    except EqxunetError:
        if (directory / _LOCK).is_file():
            with locked(directory):
                pass
        raise


def point_latest(directory: Path) -> None:
    """Lets `runs/latest` point to a run in `runs/`; of a run elsewhere there is no latest.

    Raises UnavailableError where it cannot.
    """
    if directory.parent != RUNS.resolve():
        return
    link = directory.parent / "latest"
    partial = link.with_name(f".latest.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)
        partial.symlink_to(directory.name)
        partial.replace(link)
    except OSError as error:
        raise _unwritable(link, error) from error


def _is_empty(directory: Path) -> bool:
    """Whether there is nothing but a lock and what a killed process left of `storage`."""
    return all(path.name == _LOCK or is_partial(path) for path in directory.iterdir())


def _unwritable(path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"{path}: cannot be written ({error.strerror or error}); name another --run"
    )
