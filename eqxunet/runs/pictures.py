"""The pictures of a run."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from ..data import Split
from ..evaluation import Scores, score
from .load import Run

_PICTURED = 8


def draw_training(run: Run, records: Sequence[Mapping[str, Any]], val_split: Split) -> None:
    """Draws the curves, and validation images as the best checkpoint segments them."""
    # Matplotlib takes a second, which the first step can do without.
    from ..report import save_curves

    save_curves(records, run.directory / "curves.png")
    first = dataclasses.replace(
        val_split,
        images=val_split.images[:_PICTURED],
        labels=val_split.labels[:_PICTURED],
        names=val_split.names[:_PICTURED],
    )
    scores = score(run.predictor(), first)
    _draw(run, first, scores, np.arange(len(first)), run.directory / "predictions.png")


def draw_examples(run: Run, split: Split, scores: Scores, path: Path) -> None:
    """Pictures examples from the worst to the best, evenly spaced by rank."""
    ranks = np.linspace(0, len(split) - 1, min(_PICTURED, len(split))).round().astype(int)
    _draw(run, split, scores, np.argsort(scores.iou, kind="stable")[ranks], path)


def _draw(
    run: Run, split: Split, scores: Scores, chosen: Int[np.ndarray, " n"], path: Path
) -> None:
    from ..report import save_predictions

    task = scores.task
    predictor = run.predictor()
    logits = predictor.logits(split.images[chosen])
    probability = np.asarray(predictor.probability(logits)) if task.outputs == 1 else None
    save_predictions(
        split.images[chosen],
        np.asarray(task.targets(split.labels[chosen])),
        np.asarray(predictor.prediction(logits, scores.threshold)),
        probability,
        [split.names[i] for i in chosen],
        [f"IoU {scores.iou[i]:.2f}" for i in chosen],
        task.classes,
        task.colours,
        path,
    )
