"""The page of a run's scores."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Split
from ..data.batches import padded_batches
from ..evaluation import Scores
from .documents import read_json
from .load import Run
from .observer import Observer
from .records import read_records

if TYPE_CHECKING:
    from ..report import Picture


def write_report(
    run: Run,
    split: Split,
    scores: Scores,
    metrics: dict[str, Any],
    rows: list[dict[str, Any]],
    path: Path,
    observer: Observer,
) -> None:
    """Writes the page of detailed scores; of validation, what the run's calibration holds."""
    # Jinja2 and Matplotlib take a second, which scores can do without.
    from ..report import Report, save_report

    config = read_json(run.directory / "config.json")
    validation: dict[str, Any] = {}
    if calibration := run.calibration:
        bins = [
            dict(zip(calibration.bins, row, strict=True))
            for row in zip(*calibration.bins.values(), strict=True)
        ]
        validation = {
            "calibration": dataclasses.asdict(calibration) | {"bins": bins},
            "threshold_curve": calibration.curve,
        }
    report = Report(
        metrics | validation | {"sizes": _with_shares(metrics["sizes"])},
        rows,
        scores.task.classes,
        scores.task.colours,
        read_records(run.directory, observer.warn),
        config,
    )
    save_report(report, _pictures(split, scores), path)


def _with_shares(sizes: dict[str, Any]) -> dict[str, Any]:
    named = {}
    for name, scores in sizes.items():
        low, high = scores["share"]
        rest = {key: value for key, value in scores.items() if key != "share"}
        named[f"{name}, {low:.1%} to {high:.1%} of the image"] = rest
    return named


def _pictures(split: Split, scores: Scores) -> "Iterator[Picture]":
    from ..report import Picture

    details = scores.details
    assert details is not None
    outputs = details.predictions if details.levels is None else details.levels
    for i, (output, (batch, _)) in enumerate(zip(outputs, padded_batches(split, 1), strict=True)):
        histogram = None if details.histograms is None else details.histograms[i]
        target = np.asarray(scores.task.targets(batch.labels[0]))
        yield Picture(batch.images[0], target, output, histogram)
