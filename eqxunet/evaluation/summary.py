"""Scores reduced: to what `metrics.json` and `per_image.csv` hold."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ..tasks import AbstractTask
from ..tasks.task import SCORES
from .intervals import mean_intervals
from .scoring import BORDERS, Scores

_GROUP = re.compile(r"(.*[^\d_-])[_-]?\d+")
_SIZES = ("small", "medium", "large")


def summarise(scores: Scores) -> dict[str, Any]:
    """Reduces scores to what `metrics.json` holds.

    Scores are means over images with a 95% interval (`mean_intervals`). `pooled` sums the pixels
    of all images first. `baseline` has the means of predicting one class everywhere. `groups` and
    `sizes` have the IoU of images by the group that names carry, as in Bengal_12, and by thirds of
    the foreground's share of the image. `empty` counts images without foreground.
    """
    task, confusion = scores.task, scores.confusion
    own = {**_intervals(_columns(scores)), **_pooled(task, confusion)}
    by_border = {}
    for border in BORDERS:
        counts = np.asarray(scores.by_border.get(border, confusion))
        columns = {name: np.asarray(task.score(name, counts)) for name in ("iou", "dice")}
        is_own = border == task.border or border not in scores.by_border
        means = {name: own[name] for name in columns} if is_own else _intervals(columns)
        by_border[border] = {**means, **_pooled(task, counts)}
    share, predicted = _foreground(confusion, axis=-1), _foreground(confusion, axis=-2)
    return {
        "count": len(scores.names),
        "threshold": scores.threshold,
        "border": task.border,
        "classes": list(task.classes),
        "loss": scores.loss,
        **own,
        **task.details(confusion, mean_intervals),
        "empty": {
            "truth": int(np.sum(share == 0)),
            "prediction": int(np.sum(predicted == 0)),
            "both": int(np.sum((share == 0) & (predicted == 0))),
        },
        "groups": _by(groups_of(scores.names), scores.iou),
        "sizes": _by_size(share, scores.iou),
        "by_border": by_border,
    }


def per_image(scores: Scores) -> list[dict[str, Any]]:
    """The rows of `per_image.csv`, under the headline border policy."""
    confusion = scores.confusion
    columns = _columns(scores)
    groups = groups_of(scores.names)
    table = {
        "name": scores.names,
        **{name: columns.pop(name) for name in ("iou", "dice")},
        **scores.task.columns(confusion),
        **columns,
        "foreground": _foreground(confusion, axis=-1),
        **({"group": groups} if groups else {}),
        **({} if scores.losses is None else {"loss": scores.losses}),
    }
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def baseline(task: AbstractTask, confusion: Int[np.ndarray, "n k k"]) -> dict[str, Any]:
    """The mean scores of predicting one class everywhere: the one whose IoU is the best."""
    trivial = []
    for k, name in enumerate(task.classes):
        constant = np.zeros_like(confusion)
        constant[..., k] = confusion.sum(axis=-1)
        iou, dice = (float(np.mean(task.score(name, constant))) for name in ("iou", "dice"))
        trivial.append({"class": name, "iou": iou, "dice": dice})
    return max(trivial, key=lambda scores: scores["iou"])


def groups_of(names: Sequence[str]) -> list[str]:
    """The group of each image, where all names end in a number and there are several groups."""
    matches = [_GROUP.fullmatch(name) for name in names]
    groups = [match[1] for match in matches if match]
    distinct = len(set(groups))
    return groups if len(groups) == len(names) and 2 <= distinct <= len(names) / 2 else []


def _columns(scores: Scores) -> dict[str, Float[np.ndarray, " n"]]:
    """The scores of each image."""
    task, confusion = scores.task, scores.confusion
    columns = {name: np.asarray(task.score(name, confusion)) for name in SCORES}
    columns["accuracy"] = _accuracy(confusion)
    if scores.details is not None:
        columns["boundary_iou"] = scores.details.boundary_iou
        columns["hd95"] = scores.details.hausdorff95
    return columns


def _accuracy(confusion: Int[np.ndarray, "n k k"]) -> Float[np.ndarray, " n"]:
    """The share of pixels of the right class; 1 where none count."""
    total = confusion.sum(axis=(-2, -1))
    right = np.trace(confusion, axis1=-2, axis2=-1)
    return np.where(total == 0, 1.0, right / np.maximum(total, 1))


def _intervals(columns: dict[str, Float[np.ndarray, " n"]]) -> dict[str, Any]:
    values = np.stack(list(columns.values()), axis=1)
    return dict(zip(columns, mean_intervals(values), strict=True))


def _pooled(task: AbstractTask, confusion: Int[np.ndarray, "n k k"]) -> dict[str, Any]:
    pooled = confusion.sum(axis=0, keepdims=True)
    return {
        "pooled": {
            **{name: task.score(name, pooled).item() for name in SCORES},
            "accuracy": _accuracy(pooled).item(),
        },
        "baseline": baseline(task, confusion),
    }


def _foreground(confusion: Int[np.ndarray, "n k k"], *, axis: int) -> Float[np.ndarray, " n"]:
    """The share of pixels that are not of the first class, in truth (-1) or in prediction (-2)."""
    by_class = confusion.sum(axis=axis)
    return by_class[:, 1:].sum(axis=-1) / np.maximum(by_class.sum(axis=-1), 1)


def _by(groups: Sequence[str], iou: Float[np.ndarray, " n"]) -> dict[str, Any]:
    found = np.asarray(groups, dtype=object)
    return {group: _of(found == group, iou) for group in sorted(set(groups))}


def _by_size(share: Float[np.ndarray, " n"], iou: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """By thirds of the images that have foreground."""
    order = np.argsort(share, kind="stable")
    thirds = np.array_split(order[share[order] > 0], len(_SIZES))
    sizes: dict[str, Any] = {}
    for name, third in zip(_SIZES, thirds, strict=True):
        if len(third):
            chosen = np.isin(np.arange(len(share)), third)
            ends = [float(share[third[0]]), float(share[third[-1]])]
            sizes[name] = {"share": ends, **_of(chosen, iou)}
    return sizes


def _of(chosen: Bool[np.ndarray, " n"], iou: Float[np.ndarray, " n"]) -> dict[str, Any]:
    return {"images": int(chosen.sum()), "iou": mean_intervals(iou[chosen, None])[0]}
