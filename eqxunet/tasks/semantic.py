"""One of several classes a pixel."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Bool, Float, Int, UInt8

from ..config import Border, Labels
from .losses import softmax_loss
from .metrics import Counts
from .task import AbstractTask, Intervals, class_of_label, look_up


class Semantic(AbstractTask):
    """One logit a class; the sum of cross-entropy and soft Dice, mean over an image's classes.

    An image's score is the mean over the classes present in its truth or its prediction; a class
    that is in neither has no part in it. Where no pixel counts, it is 1.
    """

    classes: tuple[str, ...] = eqx.field(static=True)
    kind: Labels = eqx.field(static=True, default="classes")
    border: Border = eqx.field(static=True, default="foreground")

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @property
    def colours(self) -> UInt8[np.ndarray, "k 3"]:
        """Those of PASCAL VOC: the bits of an index, three at a time, from the highest down."""
        index = np.arange(len(self.classes))[:, None]
        bits = [((index >> (3 * level + np.arange(3))) & 1) << (7 - level) for level in range(3)]
        return np.sum(bits, axis=0).astype(np.uint8)

    @property
    def has_border(self) -> bool:
        """Not that of a trimap, which is a class of its own here."""
        return self.kind != "trimap" and super().has_border

    @property
    def scored_classes(self) -> tuple[int, ...]:
        return tuple(range(len(self.classes)))

    def targets(
        self, labels: UInt8[Array | np.ndarray, "*b h w"]
    ) -> UInt8[Array | np.ndarray, "*b h w"]:
        if self.kind == "trimap":
            return look_up({1: 1, 2: 0, 3: 2}, labels)
        return class_of_label(labels, self.kind, self.border)

    def loss(
        self, logits: Float[Array, "h w k"], target: UInt8[Array | np.ndarray, "h w"]
    ) -> Float[Array, ""]:
        return softmax_loss(logits, jnp.asarray(target))

    def probability(
        self, logits: Float[Array | np.ndarray, "*b h w k"]
    ) -> Float[Array | np.ndarray, "*b h w k"]:
        softmax = scipy.special.softmax if isinstance(logits, np.ndarray) else jax.nn.softmax
        return softmax(logits, axis=-1)

    def prediction(
        self,
        logits: Float[Array | np.ndarray, "*b h w k"],
        threshold: Float[Array, ""] | float = 0.5,
    ) -> UInt8[Array | np.ndarray, "*b h w"]:
        return logits.argmax(axis=-1).astype(np.uint8)

    def columns(self, confusion: Int[np.ndarray, "n k k"]) -> dict[str, Any]:
        counts = self.counts(confusion)
        named = zip(self.classes, counts.iou.T, _is_present(counts).T, strict=True)
        return {f"iou_{name}": np.where(here, scores, np.nan) for name, scores, here in named}

    def details(self, confusion: Int[np.ndarray, "n k k"], intervals: Intervals) -> dict[str, Any]:
        counts, pooled = self.counts(confusion), self.counts(confusion.sum(axis=0))
        is_present = _is_present(counts)
        scores = np.where(np.hstack([is_present] * 2), np.hstack([counts.iou, counts.dice]), np.nan)
        means = intervals(scores)
        per_class = {}
        for k, name in enumerate(self.classes):
            images = int(is_present[:, k].sum())
            per_class[name] = {
                "iou": means[k] if images else None,
                "dice": means[len(self.classes) + k] if images else None,
                "pooled_iou": float(pooled.iou[k]) if images else None,
                "images": images,
            }
        return {"per_class": per_class, "confusion": confusion.sum(axis=0).tolist()}


def _is_present(counts: Counts) -> Bool[Array | np.ndarray, "n k"]:
    """Whether an image's truth or prediction has a class."""
    return counts.tp + counts.fp + counts.fn > 0
