"""One of several classes a pixel."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from ..config import Border, Labels
from .losses import softmax_loss
from .task import EPSILON, AbstractTask, Confusion, class_of_label, look_up


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

    def targets(self, labels: UInt8[Array | np.ndarray, "*b h w"]) -> UInt8[Array, "*b h w"]:
        if self.kind == "trimap":
            return look_up({1: 1, 2: 0, 3: 2}, labels)
        return class_of_label(labels, self.kind, self.border)

    def loss(self, logits: Float[Array, "h w k"], target: UInt8[Array, "h w"]) -> Float[Array, ""]:
        return softmax_loss(logits, target)

    def probability(self, logits: Float[Array, "*b h w k"]) -> Float[Array, "*b h w k"]:
        return jax.nn.softmax(logits, axis=-1)

    def prediction(
        self, logits: Float[Array, "*b h w k"], threshold: Float[Array, ""] | float = 0.5
    ) -> UInt8[Array, "*b h w"]:
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    def iou(self, confusion: Confusion) -> Float[Array | np.ndarray, "*b"]:
        return _mean(*_class_iou(confusion))

    def dice(self, confusion: Confusion) -> Float[Array | np.ndarray, "*b"]:
        return _mean(*_class_dice(confusion))

    def columns(self, confusion: Int[np.ndarray, "n k k"]) -> dict[str, Any]:
        iou, is_present = _class_iou(confusion)
        named = zip(self.classes, iou.T, is_present.T, strict=True)
        return {f"iou_{name}": np.where(here, scores, np.nan) for name, scores, here in named}

    def details(self, confusion: Int[np.ndarray, "n k k"], interval: Any) -> dict[str, Any]:
        (iou, is_present), (dice, _) = _class_iou(confusion), _class_dice(confusion)
        pooled, is_anywhere = _class_iou(confusion.sum(axis=0))
        per_class = {}
        for k, name in enumerate(self.classes):
            here = is_present[:, k]
            per_class[name] = {
                "iou": interval(iou[here, k]) if here.any() else None,
                "dice": interval(dice[here, k]) if here.any() else None,
                "pooled_iou": float(pooled[k]) if is_anywhere[k] else None,
                "images": int(here.sum()),
            }
        return {"per_class": per_class, "confusion": confusion.sum(axis=0).tolist()}


Scores = tuple[Float[Array | np.ndarray, "*b k"], Bool[Array | np.ndarray, "*b k"]]


def _class_iou(confusion: Confusion) -> Scores:
    overlap, truth, predicted = _sums(confusion)
    union = truth + predicted - overlap
    return (overlap + EPSILON) / (union + EPSILON), union > 0


def _class_dice(confusion: Confusion) -> Scores:
    overlap, truth, predicted = _sums(confusion)
    return (2 * overlap + EPSILON) / (truth + predicted + EPSILON), truth + predicted > 0


def _sums(confusion: Confusion) -> tuple[Any, Any, Any]:
    return confusion.diagonal(0, -2, -1), confusion.sum(axis=-1), confusion.sum(axis=-2)


def _mean(
    score: Float[Array | np.ndarray, "*b k"], is_present: Bool[Array | np.ndarray, "*b k"]
) -> Float[Array | np.ndarray, "*b"]:
    present = is_present.sum(axis=-1)
    return ((score * is_present).sum(axis=-1) + (present == 0)) / (present + (present == 0))
