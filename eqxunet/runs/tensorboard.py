"""A run's records as TensorBoard reads them, in `tensorboard/` of its directory."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ..errors import InputError, UnavailableError

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

    Raises UnavailableError where the log cannot be written.
    """
    # Not `SummaryWriter`, whose thread a full disk ends, after which all that is added waits.
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2

    proto: Any = event_pb2  # whose names are made when it is imported
    folder = directory / FOLDER
    is_new = not folder.exists()
    step = records[-1]["step"] if records else 0
    with _writing(folder):
        folder.mkdir(exist_ok=True)
        # The suffix tells it from one of the same second.
        writer = EventsWriter(str(folder / "events"), f".{step}")

    def write(step: int, **what: Any) -> None:
        writer.write_event(proto.Event(wall_time=time.time(), step=step, **what))

    def log(record: Mapping[str, Any], predictions: UInt8[np.ndarray, "n h w 3"] | None) -> None:
        with _writing(folder):
            for name, value in record.items():
                if name != "step" and value is not None:
                    write(record["step"], summary=summary.scalar(name, value))
            if predictions is not None:
                pictures = summary.image("val/predictions", predictions, dataformats="NHWC")
                write(record["step"], summary=pictures)
            writer.flush()  # for whoever watches

    try:
        write(
            step + 1, session_log=proto.SessionLog(status=proto.SessionLog.START)
        )  # hides what is later
        for record in records if is_new else ():
            log(record, None)
        yield log
    finally:
        with contextlib.suppress(OSError):  # `log` said it, having written all that there was
            writer.close()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"{folder}: cannot be written ({error.strerror or error}); free space there, or leave "
            "out --tensorboard"
        ) from error
