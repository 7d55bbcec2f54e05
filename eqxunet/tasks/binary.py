"""Foreground or background."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from ..config import Border, Labels
from .losses import segmentation_loss
from .metrics import Counts
from .task import IGNORED, AbstractTask, Confusion, class_of_label


class Binary(AbstractTask):
    """One logit a pixel, of foreground; the sum of cross-entropy and soft Dice."""

    kind: Labels = eqx.field(static=True, default="mask")
    border: Border = eqx.field(static=True, default="foreground")

    classes: tuple[str, ...] = eqx.field(
        static=True, init=False, default=("background", "foreground")
    )

    @property
    def outputs(self) -> int:
        return 1

    @property
    def colours(self) -> UInt8[np.ndarray, "k 3"]:
        return np.array([[0, 0, 0], [255, 255, 255]], np.uint8)

    def targets(self, labels: UInt8[Array | np.ndarray, "*b h w"]) -> UInt8[Array, "*b h w"]:
        return class_of_label(labels, self.kind, self.border)

    def loss(self, logits: Float[Array, "h w k"], target: UInt8[Array, "h w"]) -> Float[Array, ""]:
        return segmentation_loss(logits[..., 0], target == 1, target != IGNORED)

    def probability(self, logits: Float[Array, "*b h w k"]) -> Float[Array, "*b h w"]:
        return jax.nn.sigmoid(logits[..., 0])

    def prediction(
        self, logits: Float[Array, "*b h w k"], threshold: Float[Array, ""] | float = 0.5
    ) -> UInt8[Array, "*b h w"]:
        return (self.probability(logits) >= threshold).astype(jnp.uint8)

    def iou(self, confusion: Confusion) -> Float[Array | np.ndarray, "*b"]:
        return _counts(confusion).iou

    def dice(self, confusion: Confusion) -> Float[Array | np.ndarray, "*b"]:
        return _counts(confusion).dice

    def columns(self, confusion: Int[np.ndarray, "n k k"]) -> dict[str, Any]:
        return _counts(confusion)._asdict()

    def details(self, confusion: Int[np.ndarray, "n k k"], interval: Any) -> dict[str, Any]:
        return {}


def _counts(confusion: Confusion) -> Counts:
    background, foreground = confusion[..., 0, :], confusion[..., 1, :]
    return Counts(
        tp=foreground[..., 1], fp=background[..., 1], fn=foreground[..., 0], tn=background[..., 0]
    )
