"""Where the scores of a run go, and whether they may."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import DATASETS, SplitName
from ..data.complaints import some_of
from ..data.example import names_of
from ..data.source import open_source
from ..data.split import is_of
from ..errors import InputError, IntegrityError
from .config import RunConfig
from .documents import read_json
from .load import Run

_MOST = 2**26  # bytes of scores; 256 classes and 100,000 groups of images have fewer


def scores_directory(
    run: Run,
    *,
    data: str,
    split: SplitName,
    threshold: float,
    limit: int | None,
    at_own_size: bool,
) -> Path:
    """Where the scores of a run under these conditions go, so that others' stay.

    `eval/SPLIT` in the run's directory holds those on the run's own data at a threshold of 0.5.
    """
    parts: list[str] = [split]
    if data != run.config.data:
        parts.append(f"of-{Path(data).name}")
    if limit != run.config.limit:
        parts.append(f"first-{limit}")
    if threshold != 0.5:
        parts.append(f"threshold-{threshold:g}")
    if at_own_size:
        parts.append("original-size")
    return run.directory / "eval" / "-".join(parts)


def check_scores(out: Path, conditions: Mapping[str, Any], file: str = "metrics.json") -> None:
    """Raises InputError where a directory holds other scores, or something else.

    Arguments:

    - `file`: which holds scores and their conditions.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name another folder")
    written = sorted(path.name for path in out.iterdir()) if out.exists() else []
    try:
        before = read_json(out / file, most=_MOST) if written else conditions
        changed = [f"{k} {before[k]}" for k, v in conditions.items() if before.get(k, v) != v]
    except (FileNotFoundError, IntegrityError, AttributeError):
        changed = written
    if changed:
        raise InputError(
            f"{out}: holds something else ({some_of(changed)}); name another folder (--out), or "
            "add --overwrite"
        )


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV, from which every name comes back as it is."""
    lines = []
    for row in rows:
        # Python quotes a carriage return only where it is part of the line's end.
        line = io.StringIO()
        csv.writer(line, lineterminator="\r\n").writerow(row)
        lines.append(line.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


def check_same_images(run: Run, config: RunConfig) -> str | None:
    """Returns a warning where a folder's images are no longer those that a run was trained on.

    Splits without lists depend on all names: an image that was trained on may be in another now.
    """
    if config.data != run.config.data or config.data in DATASETS or not run.config.identity:
        return None
    splits: tuple[SplitName, ...] = ("train", "val")
    for split in splits:
        limit = run.config.limit
        source = open_source(config.data, split, labels=config.labels, limit=limit)
        if not is_of(run.config.identity[split]["crc32"], names_of(source)):
            return (
                f"{config.data}: images came or went since {run.directory.name} was trained, so "
                "some that it was trained on may be among these"
            )
    return None
