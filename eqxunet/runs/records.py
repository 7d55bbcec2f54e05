"""`metrics.jsonl`: a line an epoch, on the disk before the checkpoint that belongs to it."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UnavailableError
from ..storage import replace_text, replacing, sync_folder
from ..training.checkpoint import BEST
from .documents import is_number, is_whole, parse, read_bytes

FILE, DAMAGED = "metrics.jsonl", "metrics.jsonl.damaged"
_MOST = 2**28  # bytes; a million epochs have as many
_SCORES = (BEST, "val/dice", "val/baseline_iou")
_LOSSES = ("train/loss", "val/loss")

Record = dict[str, Any]


def append_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Adds a line, and returns when the disk has it.

    Raises UnavailableError where it cannot be written.
    """
    line = json.dumps(record, allow_nan=False) + "\n"
    path = directory / FILE
    try:
        with path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UnavailableError(
            f"{path}: cannot be written ({error.strerror}); free space there, and go on with "
            "--resume"
        ) from error
    sync_folder(directory)


def read_records(directory: Path, warn: Callable[[str], None]) -> list[Record]:
    """The lines that can be used; of others there is one warning.

    Raises IntegrityError where there is something else than a file.
    """
    path = directory / FILE
    lines = _lines(path)
    records = [record for line in lines if (record := _record(line))]
    if damaged := len(lines) - len(records):
        warn(f"{path}: {damaged} of {len(lines)} lines cannot be read and are left out")
    return records


def cut_records(
    directory: Path, is_kept: Callable[[Record], bool], warn: Callable[[str], None]
) -> list[Record]:
    """Writes the file anew with some of its records, which it returns.

    Lines that cannot be used are appended to another file, and there is one warning of them.
    """
    path, aside = directory / FILE, directory / DAMAGED
    found = [(line, _record(line)) for line in _lines(path)]
    if damaged := [line for line, record in found if record is None]:
        with replacing(aside) as file:
            file.write(b"".join(line + b"\n" for line in [*_lines(aside), *damaged]))
        warn(
            f"{path}: {len(damaged)} of {len(found)} lines cannot be read and are now in {DAMAGED}"
        )
    records = [record for _, record in found if record and is_kept(record)]
    write_records(directory, records)
    return records


def write_records(directory: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes the file anew."""
    lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
    replace_text(directory / FILE, "".join(lines))


def best_of(records: Sequence[Record]) -> Record:
    """The record of the best epoch, the first of equals; one without a finite loss comes last."""
    return max(records, key=lambda record: (is_validated(record), record[BEST]))


def is_validated(record: Mapping[str, Any]) -> bool:
    """Whether an epoch's scores are those of finite logits."""
    return record["val/loss"] is not None


def is_patience_out(records: Sequence[Record], patience: int | None, since: int = 0) -> bool:
    """Whether as many epochs as patience allows, of those after `since`, were no better than the
    best."""
    if not patience or not records:
        return False
    return records[-1]["epoch"] - max(best_of(records)["epoch"], since) >= patience


def _lines(path: Path) -> list[bytes]:
    try:
        return read_bytes(path, most=_MOST).splitlines()
    except FileNotFoundError:
        return []


def _record(line: bytes) -> Record | None:
    try:
        record = parse(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    is_usable = (
        all(is_whole(record.get(name), 1) for name in ("step", "epoch"))
        and all(is_number(record.get(name)) for name in _SCORES)
        and all(name in record for name in _LOSSES)
        and all(value is None or is_number(value) for value in record.values())
    )
    return record if is_usable else None
