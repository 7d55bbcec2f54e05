"""What a network predicted of a few images while it learnt, kept in the run's directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..errors import UnavailableError
from ..storage import replacing

FOLDER = "snapshots"
IMAGES = 4  # of the validation split, from its first on
_MOST = 24  # epochs that are kept, beside the best and the latest


def keep_snapshot(
    directory: Path,
    predictions: UInt8[np.ndarray, "n h w"],
    records: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any],
) -> None:
    """Keeps the predictions of the last record's epoch as a PNG, and drops some of before.

    What stays are the best epoch, the latest, and at most 24 evenly spaced ones, the first among
    them.

    Arguments:

    - `records`: of all epochs until now.

    Raises UnavailableError where it cannot be written.
    """
    try:
        (directory / FOLDER).mkdir(exist_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"{directory / FOLDER}: cannot be made ({error.strerror}); free space there"
        ) from error
    with replacing(_path(directory, records[-1])) as file:
        Image.fromarray(np.hstack(list(predictions))).save(file, "PNG")
    stride = 1
    while len(records) > _MOST * stride:
        stride *= 2  # so that what is kept was kept before
    kept = {_path(directory, record) for record in (*records[::stride], best, records[-1])}
    for path in (directory / FOLDER).glob("*.png"):
        if path not in kept:
            path.unlink()


def read_snapshots(
    directory: Path, records: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], UInt8[np.ndarray, "n h w"]]]:
    """The predictions that were kept, each with its record."""
    snapshots = []
    for record in records:
        path = _path(directory, record)
        if path.exists():
            with Image.open(path) as image:
                side_by_side = np.asarray(image)
            count = side_by_side.shape[1] // side_by_side.shape[0]  # they are square
            snapshots.append((record, np.stack(np.hsplit(side_by_side, count))))
    return snapshots


def _path(directory: Path, record: Mapping[str, Any]) -> Path:
    return directory / FOLDER / f"{record['step']:08}.png"
