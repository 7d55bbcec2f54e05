"""Foreground or background."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float, Int, UInt8

from ..config import Border, Labels
from .losses import segmentation_loss
from .task import IGNORED, AbstractTask, Intervals, class_of_label


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

    @property
    def scored_classes(self) -> tuple[int, ...]:
        return (1,)

    def targets(
        self, labels: UInt8[Array | np.ndarray, "*b h w"]
    ) -> UInt8[Array | np.ndarray, "*b h w"]:
        return class_of_label(labels, self.kind, self.border)

    def loss(
        self, logits: Float[Array, "h w k"], target: UInt8[Array | np.ndarray, "h w"]
    ) -> Float[Array, ""]:
        target = jnp.asarray(target)
        return segmentation_loss(logits[..., 0], target == 1, target != IGNORED)

    def probability(
        self, logits: Float[Array | np.ndarray, "*b h w k"]
    ) -> Float[Array | np.ndarray, "*b h w"]:
        sigmoid = scipy.special.expit if isinstance(logits, np.ndarray) else jax.nn.sigmoid
        return sigmoid(logits[..., 0])

    def prediction(
        self,
        logits: Float[Array | np.ndarray, "*b h w k"],
        threshold: Float[Array, ""] | float = 0.5,
    ) -> UInt8[Array | np.ndarray, "*b h w"]:
        logit = scipy.special.logit if isinstance(threshold, float) else jax.scipy.special.logit
        return (logits[..., 0] >= logit(threshold)).astype(np.uint8)

    def columns(self, confusion: Int[np.ndarray, "n k k"]) -> dict[str, Any]:
        return {name: array[:, 0] for name, array in self.counts(confusion)._asdict().items()}

    def details(self, confusion: Int[np.ndarray, "n k k"], intervals: Intervals) -> dict[str, Any]:
        return {}
