"""What a run's validation images say about its probabilities, kept beside its checkpoints."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

from ..data import Split
from ..errors import InputError
from ..evaluation import Calibration, calibrate
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
    val_split = val_split or load(run.config, "val", observer)
    task = dataclasses.replace(run.task, kind=val_split.kind)
    predictor = dataclasses.replace(run.predictor(), task=task)
    with observer.progress("calibrating on val images") as progress:
        calibration = calibrate(predictor, val_split, progress=progress)
    _write(calibration_file(run.directory), run.step, calibration)
    return dataclasses.replace(run, calibration=calibration)


def chosen_threshold(run: Run, threshold: float | Literal["auto"], observer: Observer) -> float:
    """A threshold as a number.

    Raises InputError for one that is no probability, or where there is nothing to compare with it.
    """
    if run.config.task != "binary" and threshold != 0.5:
        raise InputError(
            f"there is no threshold where there are several classes; leave out {threshold}"
        )
    if threshold == "auto":
        calibration = calibrated(run, observer).calibration
        assert calibration is not None
        return calibration.threshold
    if not 0 <= threshold <= 1:
        raise InputError(f"the threshold is a probability, from 0 to 1, not {threshold}")
    return threshold


def _write(path: Path, step: int, calibration: Calibration) -> None:
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps({"step": step, **dataclasses.asdict(calibration)}, indent=1) + "\n")
    aside.replace(path)
