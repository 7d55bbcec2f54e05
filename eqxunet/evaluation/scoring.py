"""Scores of a split: counts of every image under every border policy, and details of each."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from ..config import Border
from ..data import Split
from ..data.augment import to_float
from ..data.batches import padded_batches
from ..data.decoding import Decoded, decode, map_examples, resize_image
from ..data.example import Progress, Source
from ..tasks import IGNORED, AbstractTask, confusion_matrix
from .details import Details, distances, histogram, joined, to_levels
from .predictor import Predictor
from .tiles import resize_logits

BORDERS: tuple[Border, ...] = ("foreground", "background", "ignore")

Policies = dict[Border, Int[Array | np.ndarray, "n k k"]]
"""By border policy, each image's pixels by true and predicted class."""


@dataclass(frozen=True)
class Scores:
    """Of a split's images, in its order.

    - `names`: of the images.
    - `losses`: loss of each image, where it was computed.
    - `by_border`: by border policy, each image's confusion matrix, truth in rows.
    - `task`: whose border policy the headline scores and losses follow.
    - `threshold`: probability from which a pixel is predicted foreground.
    - `details`: of each image, where they were asked for.
    - `first`: predictions of the first batch, at the size of training.
    """

    names: tuple[str, ...]
    losses: Float[np.ndarray, " n"] | None
    by_border: Policies
    task: AbstractTask
    threshold: float
    details: Details | None = None
    first: UInt8[np.ndarray, "b h w"] | None = None

    @property
    def confusion(self) -> Int[np.ndarray, "n k k"]:
        """Under the headline border policy."""
        return np.asarray(self.by_border[self.task.border])

    @property
    def loss(self) -> float | None:
        """The mean over images; none where it is not finite, a number that JSON does not have."""
        mean = None if self.losses is None else float(np.mean(self.losses))
        return mean if mean is not None and np.isfinite(mean) else None

    @property
    def iou(self) -> Float[np.ndarray, " n"]:
        """Of each image."""
        return np.asarray(self.task.score("iou", self.confusion))


def score(
    predictor: Predictor,
    split: Split,
    *,
    threshold: float = 0.5,
    is_detailed: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """Scores predictions of a split, at the size the split was loaded at.

    Raises InputError where the split's labels are not those that the task takes.

    Arguments:

    - `is_detailed`: whether to look at outlines and probabilities, which takes milliseconds an
      image.
    - `progress`: called with how many of how many images are done.
    """
    task = predictor.task
    task.check(split.kind, split.classes)
    limit = jnp.asarray(threshold, jnp.float32)
    losses: list[np.ndarray] = []
    confusions: list[Policies] = []
    details: list[Details] = []
    first = None
    done = 0
    for batch, real in padded_batches(split, predictor.batch_size):
        results = jax.device_get(
            _score_batch(predictor, batch.images, batch.labels, limit, is_detailed=is_detailed)
        )
        loss, counts, prediction, probability = jax.tree.map(lambda x, n=real: x[:n], results)
        first = prediction if first is None else first
        losses.append(loss)
        confusions.append(counts)
        if is_detailed:
            targets = np.asarray(task.targets(np.asarray(batch.labels[:real])))
            details.append(_details(task, prediction, probability, targets))
        done += real
        if progress is not None:
            progress(done, len(split))
    return Scores(
        split.names,
        np.concatenate(losses),
        _joined(confusions),
        task,
        threshold,
        joined(details) if is_detailed else None,
        first,
    )


@eqx.filter_jit
def _score_batch(
    predictor: Predictor,
    images: UInt8[Array | np.ndarray, "b h w c"],
    labels: UInt8[Array | np.ndarray, "b h w"],
    threshold: Float[Array, ""],
    *,
    is_detailed: bool,
) -> tuple[Float[Array, " b"], Policies, UInt8[Array, "b h w"], Float[Array, "b h w"] | None]:
    task, labels = predictor.task, jnp.asarray(labels)
    logits = predictor.forward(to_float(images))
    prediction = jnp.asarray(predictor.prediction(logits, threshold))
    counts: Policies = {}
    for border in _borders(task):
        target = jnp.asarray(dataclasses.replace(task, border=border).targets(labels))
        counts[border] = jax.vmap(lambda p, t: confusion_matrix(p, t, len(task.classes)))(
            prediction, target
        )
    losses = jax.vmap(task.loss)(logits, jnp.asarray(task.targets(labels)))
    is_shown = is_detailed and task.outputs == 1
    probability = jnp.asarray(predictor.probability(logits)) if is_shown else None
    return losses, counts, prediction, probability


def score_at_own_size(
    predictor: Predictor,
    source: Source,
    *,
    threshold: float = 0.5,
    progress: Progress | None = None,
) -> Scores:
    """Scores predictions of images at their own size, with details and without losses.

    An image is resized to the model's size, and the logits back to the image's, as `predict` does.
    What the details hold of each pixel is at the model's size, by nearest neighbour.

    Raises InputError where the labels are not those that the task takes, or an example cannot be
    decoded.
    """
    task, size = predictor.task, predictor.model.size
    task.check(source.kind, source.classes.names)
    names: list[str] = []
    confusions: list[Policies] = []
    details: list[Details] = []
    for chunk in _chunks(source, predictor.batch_size):
        small = np.stack([resize_image(example.image, size) for _, example in chunk])
        for (name, example), logits in zip(chunk, predictor.logits(small), strict=True):
            logits = resize_logits(logits, example.labels.shape)
            prediction = np.asarray(predictor.prediction(logits, threshold))
            confusions.append({})
            for border in _borders(task):
                target = dataclasses.replace(task, border=border).targets(example.labels)
                counts = _count(prediction, np.asarray(target), len(task.classes))
                confusions[-1][border] = counts[None]
            probability = np.asarray(predictor.probability(logits)) if task.outputs == 1 else None
            target = np.asarray(task.targets(example.labels))
            full = _details(task, prediction[None], _only(probability), target[None])
            details.append(
                full._replace(
                    predictions=_nearest(full.predictions, size),
                    levels=None if full.levels is None else _nearest(full.levels, size),
                )
            )
            names.append(name)
        if progress is not None:
            progress(len(names), len(source))
    by_border = _joined(confusions)
    return Scores(tuple(names), None, by_border, task, threshold, joined(details))


def _chunks(source: Source, count: int) -> Iterator[list[tuple[str, Decoded]]]:
    decoded = map_examples(lambda example: (example.name, decode(example)), source)
    while chunk := list(itertools.islice(decoded, count)):
        for example in chunk:
            if isinstance(example, Exception):
                raise example
        yield chunk  # pyright: ignore[reportReturnType]


def _count(
    prediction: UInt8[np.ndarray, "h w"], target: UInt8[np.ndarray, "h w"], classes: int
) -> Int[np.ndarray, "k k"]:
    """As `confusion_matrix`, without compiling anew for every size of image."""
    pairs = (classes * target.astype(np.int64) + prediction)[target != IGNORED]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _details(
    task: AbstractTask,
    predictions: UInt8[np.ndarray, "b h w"],
    probability: Float[np.ndarray, "b h w"] | None,
    targets: UInt8[np.ndarray, "b h w"],
) -> Details:
    pairs = [distances(task, *both) for both in zip(predictions, targets, strict=True)]
    boundary, hausdorff = (np.array(values) for values in zip(*pairs, strict=True))
    if probability is None:
        return Details(boundary, hausdorff, predictions, None, None)
    levels = to_levels(probability)
    counts = [histogram(*both) for both in zip(levels, targets, strict=True)]
    return Details(boundary, hausdorff, predictions, levels, np.stack(counts))


def _borders(task: AbstractTask) -> tuple[Border, ...]:
    return BORDERS if task.has_border else (task.border,)


def _joined(confusions: Sequence[Any]) -> Policies:
    """The policies of all images."""
    return jax.tree.map(lambda *parts: np.concatenate(parts).astype(np.int64), *confusions)


def _only(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array[None]


def _nearest(pixels: UInt8[np.ndarray, "1 h w"], size: int) -> UInt8[np.ndarray, "1 {size} {size}"]:
    return np.asarray(Image.fromarray(pixels[0]).resize((size, size), Image.Resampling.NEAREST))[
        None
    ]
