"""What is said of each image beyond its counts, and what a report shows of it."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from ..tasks import IGNORED, AbstractTask
from ..tasks.boundary import boundary_iou, hausdorff95

LEVELS = 256
"""How many levels a probability is sorted into."""


class Details(NamedTuple):
    """Of each image, under the headline border policy.

    - `boundary_iou`, `hausdorff95`: as in `metrics`, in pixels at the size of the labels; the mean
      over the scored classes that an image has. Pixels that do not count are in no class.
    - `predictions`: the class of each pixel.
    - `levels`: of several classes none; else the probability p of foreground as floor(256 p), so
      that p >= k / 256 where the level is k or more.
    - `histograms`: of levels, of the pixels that count: of true background, of true foreground.
    """

    boundary_iou: Float[np.ndarray, " n"]
    hausdorff95: Float[np.ndarray, " n"]
    predictions: UInt8[np.ndarray, "n h w"]
    levels: UInt8[np.ndarray, "n h w"] | None
    histograms: Int[np.ndarray, "n 2 levels"] | None


def distances(
    task: AbstractTask, prediction: UInt8[np.ndarray, "h w"], target: UInt8[np.ndarray, "h w"]
) -> tuple[float, float]:
    """Boundary IoU and 95th-percentile Hausdorff distance of an image."""
    prediction = np.where(target == IGNORED, IGNORED, prediction)
    masks = [(prediction == k, target == k) for k in task.scored_classes]
    present = [(ours, theirs) for ours, theirs in masks if ours.any() or theirs.any()]
    if not present:
        return 1.0, 0.0
    return (
        float(np.mean([boundary_iou(*pair) for pair in present])),
        float(np.mean([hausdorff95(*pair) for pair in present])),
    )


def to_levels(probability: Float[np.ndarray, "*b"]) -> UInt8[np.ndarray, "*b"]:
    """Sorts probabilities into levels."""
    return np.minimum(probability * np.float32(LEVELS), LEVELS - 1).astype(np.uint8)


def histogram(
    levels: UInt8[np.ndarray, "h w"], target: UInt8[np.ndarray, "h w"]
) -> Int[np.ndarray, "2 levels"]:
    """Counts levels by true class, of the pixels that count."""
    pairs = (levels + LEVELS * target.astype(np.int64))[target != IGNORED]
    return np.bincount(pairs, minlength=2 * LEVELS).reshape(2, LEVELS)


def joined(parts: Sequence[Details]) -> Details:
    """The details of all images."""
    columns: Iterable[Any] = zip(*parts, strict=True)
    return Details(*(None if column[0] is None else np.concatenate(column) for column in columns))  # pyright: ignore[reportArgumentType]
