"""What a run's validation images say about its probabilities, kept beside its checkpoints."""

import dataclasses
from typing import Literal

from ..data import Split
from ..errors import InputError, UnavailableError
from ..evaluation import calibrate
from .documents import write_json
from .load import Run, calibration_file
from .observer import Observer
from .splits import load


def calibrated(run: Run, observer: Observer, val_split: Split | None = None) -> Run:
    """The run with the calibration that it has, or that is made now and written down.

    Arguments:

    - `val_split`: by default loaded as the run's configuration says.
    """
    if run.calibration is not None:
        return run
    if val_split is None:
        val_split = load(run.config, "val", observer)
        identity = (run.config.identity or {}).get("val")
        if identity and identity["crc32"] != val_split.identity:
            raise InputError(
                f"{run.config.data}: its validation images are not those that {run.directory} was "
                "validated on, so nothing is to be calibrated with them; restore them, or give "
                "--threshold as a number"
            )
    task = dataclasses.replace(run.task, kind=val_split.kind)
    predictor = dataclasses.replace(run.predictor(), task=task)
    with observer.progress("calibrating on val images") as progress:
        calibration = calibrate(predictor, val_split, progress=progress)
    values = {"step": run.step, **dataclasses.asdict(calibration)}
    try:
        write_json(calibration_file(run.directory), values)
    except UnavailableError as error:
        observer.warn(f"{error}; it is made anew next time")
    return dataclasses.replace(run, calibration=calibration)


def with_threshold(
    run: Run, threshold: float | Literal["auto"], observer: Observer
) -> tuple[Run, float]:
    """A threshold as a number, and the run with the calibration that it comes from.

    Raises InputError for one that is no probability, or where there is nothing to compare with it.
    """
    if run.config.task != "binary" and threshold != 0.5:
        raise InputError(
            f"there is no threshold where there are several classes; leave out {threshold}"
        )
    if threshold == "auto":
        run = calibrated(run, observer)
        assert run.calibration is not None
        return run, run.calibration.threshold
    if not 0 <= threshold <= 1:
        raise InputError(f"the threshold is a probability, from 0 to 1, not {threshold}")
    return run, threshold
