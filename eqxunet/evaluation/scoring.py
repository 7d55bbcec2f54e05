"""Scores of a split: counts of every image under every border policy, reduced afterwards."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from ..config import Border
from ..data import Split
from ..data.augment import to_float
from ..data.batches import padded_batches
from ..data.example import Progress
from ..models import UNet
from ..tasks import AbstractTask, confusion_matrix
from .intervals import mean_intervals
from .predictor import forward

BORDERS: tuple[Border, ...] = ("foreground", "background", "ignore")

Policies = dict[Border, Int[Array | np.ndarray, "n k k"]]
"""By border policy, each image's pixels by true and predicted class."""


@dataclass(frozen=True)
class Scores:
    """Of a split's images, in its order.

    - `names`: of the images.
    - `losses`: loss of each image.
    - `by_border`: by border policy, each image's confusion matrix, truth in rows.
    - `task`: whose border policy the headline scores and losses follow.
    - `threshold`: probability from which a pixel is predicted foreground.
    """

    names: tuple[str, ...]
    losses: Float[np.ndarray, " n"]
    by_border: Policies
    task: AbstractTask
    threshold: float

    @property
    def confusion(self) -> Int[np.ndarray, "n k k"]:
        """Under the headline border policy."""
        return np.asarray(self.by_border[self.task.border])

    @property
    def iou(self) -> Float[np.ndarray, " n"]:
        """Of each image."""
        return np.asarray(self.task.iou(self.confusion))


def score(
    model: UNet,
    state: eqx.nn.State,
    split: Split,
    task: AbstractTask,
    *,
    batch_size: int = 16,
    threshold: float = 0.5,
    progress: Progress | None = None,
) -> Scores:
    """Scores a model on a split, at the size the split was loaded at.

    Raises InputError where the split's labels are not those that the task takes.

    Arguments:

    - `progress`: called with how many of how many images are done.
    """
    task.check(split.kind, split.classes)
    losses: list[np.ndarray] = []
    confusions: list[Policies] = []
    done = 0
    for batch, real in padded_batches(split, batch_size):
        results = jax.device_get(
            _score_batch(
                model, state, batch.images, batch.labels, task, jnp.asarray(threshold, jnp.float32)
            )
        )
        batch_losses, batch_confusions = jax.tree.map(lambda x, n=real: x[:n], results)
        losses.append(batch_losses)
        confusions.append(batch_confusions)
        done += real
        if progress is not None:
            progress(done, len(split))
    by_border: Policies = jax.tree.map(
        lambda *parts: np.concatenate(parts).astype(np.int64), *confusions
    )
    return Scores(split.names, np.concatenate(losses), by_border, task, threshold)


@eqx.filter_jit
def _score_batch(
    model: UNet,
    state: eqx.nn.State,
    images: UInt8[Array | np.ndarray, "b h w c"],
    labels: UInt8[Array | np.ndarray, "b h w"],
    task: AbstractTask,
    threshold: Float[Array, ""],
) -> tuple[Float[Array, " b"], Policies]:
    logits = forward(model, state, to_float(images))
    prediction = task.prediction(logits, threshold)
    counts: Policies = {}
    for border in BORDERS if task.has_border else (task.border,):
        target = dataclasses.replace(task, border=border).targets(labels)
        counts[border] = jax.vmap(lambda p, t: confusion_matrix(p, t, len(task.classes)))(
            prediction, target
        )
    losses = jax.vmap(task.loss)(logits, task.targets(labels))
    return losses, counts


def summarise(scores: Scores) -> dict[str, Any]:
    """Reduces scores to what `metrics.json` holds.

    `iou` and `dice` are means over images with a 95% interval (percentile bootstrap over images,
    9,999 resamples, seed 0; null for fewer than two images). `pooled` sums the pixels of all
    images first. `baseline` has the means of predicting one class everywhere.
    """
    task = scores.task
    own = _reduce(task, scores.confusion)
    by_border = {
        border: own
        if border == task.border or border not in scores.by_border
        else _reduce(task, np.asarray(scores.by_border[border]))
        for border in BORDERS
    }
    return {
        "count": len(scores.names),
        "threshold": scores.threshold,
        "border": task.border,
        "classes": list(task.classes),
        "loss": float(np.mean(scores.losses)),
        **own,
        **task.details(scores.confusion, _mean_with_interval),
        "by_border": by_border,
    }


def per_image(scores: Scores) -> list[dict[str, Any]]:
    """The rows of `per_image.csv`, under the headline border policy."""
    columns = {
        "name": scores.names,
        "iou": scores.iou,
        "dice": scores.task.dice(scores.confusion),
        **scores.task.columns(scores.confusion),
        "loss": scores.losses,
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def baseline(task: AbstractTask, confusion: Int[np.ndarray, "n k k"]) -> dict[str, Any]:
    """The mean scores of predicting one class everywhere: the one whose IoU is the best."""
    trivial = []
    for k, name in enumerate(task.classes):
        constant = np.zeros_like(confusion)
        constant[..., k] = confusion.sum(axis=-1)
        iou, dice = (float(np.mean(of(constant))) for of in (task.iou, task.dice))
        trivial.append({"class": name, "iou": iou, "dice": dice})
    return max(trivial, key=lambda scores: scores["iou"])


def _reduce(task: AbstractTask, confusion: Int[np.ndarray, "n k k"]) -> dict[str, Any]:
    pooled = confusion.sum(axis=0, keepdims=True)
    return {
        "iou": _mean_with_interval(np.asarray(task.iou(confusion))),
        "dice": _mean_with_interval(np.asarray(task.dice(confusion))),
        "pooled": {
            "iou": task.iou(pooled).item(),
            "dice": task.dice(pooled).item(),
            "accuracy": float(np.trace(pooled[0]) / max(pooled.sum(), 1)),
        },
        "baseline": baseline(task, confusion),
    }


def _mean_with_interval(values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    return mean_intervals(values[:, None])[0]
