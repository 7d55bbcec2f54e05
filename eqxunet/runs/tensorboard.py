"""A run's records as TensorBoard reads them, in `tensorboard/` of its directory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ..errors import InputError

FOLDER = "tensorboard"

Log = Callable[[Mapping[str, Any], UInt8[np.ndarray, "n h w 3"] | None], None]
"""Called with a record, and pictures of what was predicted then."""


def check_tensorboard() -> None:
    """Raises InputError where the package that writes TensorBoard's files is not installed."""
    if find_spec("tensorboardX") is None:
        raise InputError(
            'TensorBoard\'s files are written by tensorboardX: pip install "eqxunet[tensorboard]", '
            "or leave out --tensorboard"
        )


@contextmanager
def tensorboard_log(directory: Path, records: Sequence[Mapping[str, Any]]) -> Iterator[Log]:
    """Opens the log of a run; yields what writes an epoch into it.

    What an earlier process logged after `records` is hidden. Where there was no log, `records` are
    written first; epochs that a process left out of a log that was there stay missing.

    Arguments:

    - `records`: of before, in a run that is resumed.
    """
    from tensorboardX import SummaryWriter

    is_new = not (directory / FOLDER).exists()
    step = records[-1]["step"] if records else 0
    with SummaryWriter(
        str(directory / FOLDER),
        purge_step=step + 1,
        filename_suffix=f".{step}",  # beside the second, which may be that of another file
    ) as writer:

        def log(
            record: Mapping[str, Any], predictions: UInt8[np.ndarray, "n h w 3"] | None
        ) -> None:
            for name, value in record.items():
                if name != "step" and value is not None:
                    writer.add_scalar(name, value, record["step"])
            if predictions is not None:
                writer.add_images(
                    "val/predictions", predictions, record["step"], dataformats="NHWC"
                )
            writer.flush()  # for whoever watches

        for record in records if is_new else ():
            log(record, None)
        yield log
