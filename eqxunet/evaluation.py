"""Evaluation: counts of every image under every border policy, reduced to scores afterwards."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from .config import Border
from .data.augment import to_float
from .data.batches import Split, padded_batches
from .data.source import Progress
from .data.trimap import foreground
from .losses import segmentation_loss
from .metrics import Counts, count
from .models import AbstractUNet, batched, fold

BORDERS: tuple[Border, ...] = ("foreground", "background", "ignore")


@dataclass(frozen=True)
class Scores:
    """Of a split's images, in its order.

    - `names`: of the images.
    - `losses`: loss of each image under `border`.
    - `counts`: by border policy, the counts of each image.
    - `threshold`: probability from which a pixel is predicted foreground.
    - `border`: the policy that the headline scores follow.
    """

    names: tuple[str, ...]
    losses: Float[np.ndarray, " n"]
    counts: dict[Border, Counts]
    threshold: float
    border: Border


def evaluate(
    model: AbstractUNet,
    state: eqx.nn.State,
    arrays: Split,
    *,
    batch_size: int = 16,
    threshold: float = 0.5,
    border: Border = "foreground",
    progress: Progress | None = None,
) -> Scores:
    """Scores a model in inference mode on a split, at the size the split was loaded at.

    Arguments:

    - `progress`: called with how many of how many images are done.
    """
    losses: list[np.ndarray] = []
    counts: dict[Border, list[Counts]] = {policy: [] for policy in BORDERS}
    done = 0
    for batch, real in padded_batches(arrays, batch_size):
        batch_losses, batch_counts = jax.device_get(
            _evaluate_batch(model, state, batch.images, batch.labels, threshold, border)
        )
        losses.append(batch_losses[:real])
        for policy in BORDERS:
            counts[policy].append(jax.tree.map(lambda x, n=real: x[:n], batch_counts[policy]))
        done += real
        if progress is not None:
            progress(done, len(arrays))
    joined: dict[Border, Counts] = {
        policy: jax.tree.map(lambda *parts: np.concatenate(parts).astype(np.int64), *parts)
        for policy, parts in counts.items()
    }
    return Scores(arrays.names, np.concatenate(losses), joined, threshold, border)


@eqx.filter_jit
def forward(
    model: AbstractUNet, state: eqx.nn.State, images: Float[Array, "b h w 3"]
) -> Float[Array, "b h w"]:
    """Logits of a batch, from a model in inference mode."""
    return batched(fold(model, state))(images, state)[0][..., 0].astype(jnp.float32)


@eqx.filter_jit
def _evaluate_batch(
    model: AbstractUNet,
    state: eqx.nn.State,
    images: UInt8[Array | np.ndarray, "b h w 3"],
    trimaps: UInt8[Array | np.ndarray, "b h w"],
    threshold: float,
    border: Border,
) -> tuple[Float[Array, " b"], dict[Border, Counts]]:
    logits = forward(model, state, to_float(images))
    pred = jax.nn.sigmoid(logits) >= threshold
    counts: dict[Border, Counts] = {
        policy: jax.vmap(count)(pred, *foreground(trimaps, policy)) for policy in BORDERS
    }
    losses = jax.vmap(segmentation_loss)(logits, *foreground(trimaps, border))
    return losses, counts


def summarise(scores: Scores) -> dict[str, Any]:
    """Reduces scores to what `metrics.json` holds.

    `iou` and `dice` are means over images with a 95% interval (percentile bootstrap over images,
    9,999 resamples, seed 0; null for fewer than two images). `pooled` sums the pixels of all
    images first. `baseline` has the means of predicting foreground everywhere.
    """
    by_border = {policy: _reduce(counts) for policy, counts in scores.counts.items()}
    return {
        "count": len(scores.names),
        "threshold": scores.threshold,
        "border": scores.border,
        "loss": float(np.mean(scores.losses)),
        **by_border[scores.border],
        "by_border": by_border,
    }


def per_image(scores: Scores) -> list[dict[str, Any]]:
    """The rows of `per_image.csv`, under the headline border policy."""
    counts = scores.counts[scores.border]
    columns = {
        "name": scores.names,
        "iou": counts.iou,
        "dice": counts.dice,
        **counts._asdict(),
        "loss": scores.losses,
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def baseline(counts: Counts) -> Counts:
    """Returns the counts of predicting foreground everywhere."""
    nothing = np.zeros_like(counts.tp)
    return Counts(counts.tp + counts.fn, counts.fp + counts.tn, nothing, nothing)


def _reduce(counts: Counts) -> dict[str, Any]:
    pooled = Counts(*(column.sum(keepdims=True) for column in counts))
    trivial = baseline(counts)
    return {
        "iou": _mean_with_interval(np.asarray(counts.iou)),
        "dice": _mean_with_interval(np.asarray(counts.dice)),
        "pooled": {
            "iou": pooled.iou.item(),
            "dice": pooled.dice.item(),
            "accuracy": pooled.accuracy.item(),
        },
        "baseline": {"iou": float(np.mean(trivial.iou)), "dice": float(np.mean(trivial.dice))},
    }


def _mean_with_interval(values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    if len(values) < 2:
        return {"mean": float(np.mean(values)), "ci95": None}
    from scipy import stats

    interval = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return {"mean": float(np.mean(values)), "ci95": [float(interval.low), float(interval.high)]}
