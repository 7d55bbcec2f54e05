"""What validation images say about probabilities: which threshold, and how far to trust them."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int, UInt8

from ..data import Split
from ..data.batches import padded_batches
from ..data.example import Progress
from ..tasks import IGNORED
from ..tasks.metrics import Counts
from .details import LEVELS, histogram, to_levels
from .predictor import Predictor

_LOGITS = 2**20  # that a temperature is fitted to
_BINS = 15
_TEMPERATURES = (0.2, 5.0)


@dataclass(frozen=True)
class Calibration:
    """Taken on validation images alone.

    The confidence of a pixel is its probability of foreground, or of several classes that of the
    likeliest.

    - `temperature`: divides logits, so that probabilities come true as often as they say.
    - `ece`: expected calibration error over 15 bins of equal width (Guo et al., 2017), with the
      temperature and, as `ece_before`, without it.
    - `bins`: of the reliability diagram: mean `confidence`, `accuracy` and `count` of pixels.
    - `threshold`: the k / 256 of the best mean Dice over images; 0.5 of several classes.
    - `curve`: by `threshold`, mean `dice` over images, and `precision` and `recall` of all pixels;
      none of several classes.
    """

    temperature: float
    ece: float
    ece_before: float
    bins: dict[str, list[float]]
    threshold: float
    curve: dict[str, list[float]] | None


def calibrate(
    predictor: Predictor, split: Split, *, progress: Progress | None = None
) -> Calibration:
    """Fits a temperature, and then a threshold, to validation images at the size they are loaded.

    The temperature has the smallest cross-entropy over a million logits, as many of each image. It
    is 1 where that is not between 0.2 and 5, since the images are too few or told apart too well,
    and where it leaves the calibration error as large as it was.

    Arguments:

    - `progress`: called with how many of how many images are done; each is looked at twice.
    """
    plain = dataclasses.replace(predictor, temperature=1.0)
    temperatures = 1.0, _fit_temperature(plain, split, progress)
    predictors = [dataclasses.replace(predictor, temperature=each) for each in temperatures]
    sums = np.zeros((2, 3, _BINS))
    histograms: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for done, logits, target in _logits(predictor, split):
        for k, each in enumerate(predictors):
            probability = np.asarray(each.probability(logits))
            sums[k] += _reliability(probability, target)
            if predictor.task.outputs == 1:
                levels = to_levels(probability)
                histograms[k].extend(map(histogram, levels, target))
        if progress is not None:
            progress(len(split) + done, 2 * len(split))
    errors = [_ece(each) for each in sums]
    chosen = int(errors[1] < errors[0])
    count, confidence, right = sums[chosen]
    filled = count > 0
    bins = {
        "confidence": (confidence[filled] / count[filled]).tolist(),
        "accuracy": (right[filled] / count[filled]).tolist(),
        "count": count[filled].tolist(),
    }
    curve = threshold_curve(np.stack(histograms[chosen])) if histograms[chosen] else None
    best = 0.5 if curve is None else curve["threshold"][int(np.argmax(curve["dice"]))]
    return Calibration(temperatures[chosen], errors[chosen], errors[0], bins, best, curve)


def threshold_curve(histograms: Int[np.ndarray, "n 2 levels"]) -> dict[str, list[float]]:
    """Scores at the thresholds 1 / 256 to 255 / 256: Dice an image, the others of all pixels.

    Arguments:

    - `histograms`: as in `Details`.
    """
    # Of each image, pixels at a level or above it.
    above = np.cumsum(histograms[..., ::-1], axis=-1)[..., ::-1]
    negative, positive = above[:, 0], above[:, 1]
    counts = Counts(
        tp=positive, fp=negative, fn=positive[:, :1] - positive, tn=negative[:, :1] - negative
    )
    pooled = Counts(*(array.sum(axis=0) for array in counts))
    curve = {
        "threshold": np.arange(LEVELS) / LEVELS,
        "dice": np.mean(counts.dice, axis=0),
        "precision": pooled.precision,
        "recall": pooled.recall,
    }
    return {name: np.asarray(values)[1:].tolist() for name, values in curve.items()}


def _logits(
    predictor: Predictor, split: Split
) -> Iterator[tuple[int, Float[np.ndarray, "b h w k"], UInt8[np.ndarray, "b h w"]]]:
    done = 0
    for batch, real in padded_batches(split, predictor.batch_size):
        done += real
        target = np.asarray(predictor.task.targets(batch.labels[:real]))
        yield done, predictor.logits(batch.images[:real]), target


def _fit_temperature(predictor: Predictor, split: Split, progress: Progress | None) -> float:
    pixels = int(np.prod(split.labels.shape[1:]))
    count = min(pixels, max(1, _LOGITS // (len(split) * predictor.model.outputs)))
    chosen = np.sort(np.random.default_rng(0).choice(pixels, count, replace=False))
    logits, targets = [], []
    for done, outputs, target in _logits(predictor, split):
        here = target.reshape(len(target), -1)[:, chosen]
        outputs = outputs.reshape(len(outputs), -1, outputs.shape[-1])[:, chosen]
        logits.append(outputs[here != IGNORED])
        targets.append(here[here != IGNORED])
        if progress is not None:
            progress(done, 2 * len(split))
    scores: np.ndarray = np.concatenate(logits)
    truth = np.concatenate(targets)
    if not len(truth):
        return 1.0
    if scores.shape[-1] == 1:  # foreground against a background of 0
        scores = np.concatenate([np.zeros_like(scores), scores], axis=-1)
    of_truth = np.take_along_axis(scores, truth[:, None].astype(np.int64), axis=-1)[:, 0]

    def cross_entropy(log_temperature: float) -> float:
        heat = np.float32(np.exp(-log_temperature))
        of_all: Any = scipy.special.logsumexp(scores * heat, axis=-1)
        return float(np.mean(of_all - of_truth * heat))

    found = scipy.optimize.minimize_scalar(
        cross_entropy, bounds=np.log(_TEMPERATURES), method="bounded"
    )
    temperature = float(np.exp(found.x))
    low, high = _TEMPERATURES
    return temperature if 1.01 * low < temperature < high / 1.01 else 1.0


def _reliability(
    probability: Float[np.ndarray, "..."], target: UInt8[np.ndarray, "b h w"]
) -> Float[np.ndarray, "3 bins"]:
    """By bin: the pixels, their confidences' sum, and how many of them were right."""
    confidence, right = _confidence(probability, target)
    index = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    weights = (None, confidence, right)
    return np.stack([np.bincount(index, weight, _BINS) for weight in weights])


def _confidence(
    probability: Float[np.ndarray, "..."], target: UInt8[np.ndarray, "b h w"]
) -> tuple[Float[np.ndarray, " p"], Bool[np.ndarray, " p"]]:
    counted = target != IGNORED
    if probability.ndim == target.ndim:
        return probability[counted], target[counted] == 1
    return probability.max(axis=-1)[counted], (probability.argmax(axis=-1) == target)[counted]


def _ece(bins: Float[np.ndarray, "3 bins"]) -> float:
    count, confidence, right = bins
    return float(np.abs(confidence - right).sum() / max(count.sum(), 1))
