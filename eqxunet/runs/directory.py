"""Run directories: what may be written where, and by whom."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import BusyError, InputError
from .config import RunConfig

RUNS = Path("runs")
_LOCK = ".lock"


def append_metrics(directory: Path, record: Mapping[str, Any]) -> None:
    """Adds a line to `metrics.jsonl`."""
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, up to one that a crash left incomplete."""
    path = directory / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def keep_metrics_until(directory: Path, step: int) -> list[dict[str, Any]]:
    """Drops the lines of `metrics.jsonl` after `step`, which a resumed run writes anew.

    Returns the lines that stay. One that a crash left incomplete is dropped too.
    """
    path = directory / "metrics.jsonl"
    records = [record for record in read_metrics(directory) if record["step"] <= step]
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
    temporary.replace(path)
    return records


def new_directory(encoder: str) -> Path:
    """Makes a directory for a new run, named by the time: `runs/20260131-120000-scratch`."""
    RUNS.mkdir(exist_ok=True)
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{encoder}"
    directory, number = RUNS / name, 1
    while True:
        try:
            directory.mkdir()
            return directory
        except FileExistsError:  # another training began in this second
            number += 1
            directory = RUNS / f"{name}-{number}"


def check_directory(directory: Path, *, overwrite: bool) -> None:
    """Sees to it that a new run in a directory destroys nothing but, with `overwrite`, a run.

    Raises InputError where the directory holds something else, or a run that is not to be
    overwritten, and what `RunConfig.read` raises.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; name a directory for the run")
    if directory.name == "latest" and not directory.is_symlink():
        raise InputError(
            f"{directory}: `latest` is the link to the latest run; choose another name"
        )
    if not directory.is_dir() or {path.name for path in directory.iterdir()} <= {_LOCK}:
        return
    if not (directory / "config.json").exists():
        raise InputError(
            f"{directory}: is not empty, and no run of eqxunet; name a new directory for the run"
        )
    RunConfig.read(directory)
    if not overwrite:
        raise InputError(
            f"{directory} holds a run already: --resume goes on with it, --overwrite deletes it"
        )


def clear(directory: Path) -> None:
    """Deletes what a run wrote into its directory; last what shows that it is one."""
    for name in ("checkpoints", "eval", "snapshots", "tensorboard"):
        if (directory / name).exists():
            shutil.rmtree(directory / name)
    pictures = ("curves.png", "predictions.png", "progress.png")
    for name in ("metrics.jsonl", *pictures, "calibration.json", "config.json"):
        (directory / name).unlink(missing_ok=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds a run directory for this process; a dead process's lock counts for nothing.

    Raises BusyError where another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise BusyError(
            f"{directory}: another process is training in it; wait for it, or name another run"
        ) from error
    try:
        yield
    finally:
        lock.release()
        if {path.name for path in directory.iterdir()} <= {_LOCK}:
            shutil.rmtree(directory)  # a run that never started leaves nothing
            if directory.parent == Path(os.path.realpath(RUNS)):
                with contextlib.suppress(OSError):  # it holds other runs
                    directory.parent.rmdir()


def point_latest(directory: Path) -> None:
    """Lets `runs/latest` point to a run in `runs/`; of a run elsewhere there is no latest."""
    if directory.parent != RUNS.resolve():
        return
    link = directory.parent / "latest"
    temporary = link.with_name(f".latest-{os.getpid()}")
    temporary.symlink_to(directory.name)
    temporary.replace(link)
