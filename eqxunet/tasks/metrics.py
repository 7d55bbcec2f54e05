"""Scores of masks: count first, reduce later.

An empty prediction on an empty mask scores 1; the epsilon is the Flax original's.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from .boundary import boundary_iou as boundary_iou
from .boundary import hausdorff95 as hausdorff95

EPSILON = 1e-6
"""Of scores and of soft Dice, as the Flax original has it: nothing predicted of nothing is 1."""


class Counts(NamedTuple):
    """Pixels by prediction and truth; summed over images they give pooled scores."""

    tp: Int[Array | np.ndarray, "*b"]
    fp: Int[Array | np.ndarray, "*b"]
    fn: Int[Array | np.ndarray, "*b"]
    tn: Int[Array | np.ndarray, "*b"]

    @property
    def iou(self) -> Float[Array | np.ndarray, "*b"]:
        """Intersection over union (Jaccard index)."""
        return (self.tp + EPSILON) / (self.tp + self.fp + self.fn + EPSILON)

    @property
    def dice(self) -> Float[Array | np.ndarray, "*b"]:
        """Dice coefficient, the F1 score of pixels."""
        return (2 * self.tp + EPSILON) / (2 * self.tp + self.fp + self.fn + EPSILON)

    @property
    def precision(self) -> Float[Array | np.ndarray, "*b"]:
        """Share of the predicted pixels that are right; 0 where nothing of something is found."""
        return (self.tp + EPSILON * self._is_empty) / (self.tp + self.fp + EPSILON)

    @property
    def recall(self) -> Float[Array | np.ndarray, "*b"]:
        """Share of the true pixels that are found; 0 where something is predicted of nothing."""
        return (self.tp + EPSILON * self._is_empty) / (self.tp + self.fn + EPSILON)

    @property
    def _is_empty(self) -> Bool[Array | np.ndarray, "*b"]:
        return self.tp + self.fp + self.fn == 0

    @property
    def accuracy(self) -> Float[Array | np.ndarray, "*b"]:
        """Share of the pixels that are classified rightly."""
        return (self.tp + self.tn) / (self.tp + self.fp + self.fn + self.tn)


def count(
    pred: Shaped[Array | np.ndarray, "h w"],
    mask: Shaped[Array | np.ndarray, "h w"],
    valid: Bool[Array | np.ndarray, "h w"] | None = None,
) -> Counts:
    """Counts one image's pixels; nonzero is foreground.

    Arguments:

    - `valid`: false where a pixel is left out.

    Raises ValueError for probabilities, of which next to none are zero.
    """
    for name, array in (("pred", pred), ("mask", mask)):
        if jnp.issubdtype(array.dtype, jnp.inexact):
            raise ValueError(
                f"{name} is {array.dtype}: compare probabilities with a threshold first, as in "
                f"{name} >= 0.5"
            )
    pred, mask = jnp.asarray(pred) != 0, jnp.asarray(mask) != 0
    valid = jnp.ones(mask.shape, bool) if valid is None else valid
    return Counts(
        tp=jnp.sum(pred & mask & valid),
        fp=jnp.sum(pred & ~mask & valid),
        fn=jnp.sum(~pred & mask & valid),
        tn=jnp.sum(~pred & ~mask & valid),
    )


def iou(
    pred: Shaped[Array | np.ndarray, "h w"], mask: Shaped[Array | np.ndarray, "h w"]
) -> Float[Array | np.ndarray, ""]:
    """Intersection over union of one predicted mask and the true one; `jax.vmap` for a batch."""
    return count(pred, mask).iou


def dice(
    pred: Shaped[Array | np.ndarray, "h w"], mask: Shaped[Array | np.ndarray, "h w"]
) -> Float[Array | np.ndarray, ""]:
    """Dice coefficient of one predicted mask and the true one; `jax.vmap` for a batch."""
    return count(pred, mask).dice


def precision(
    pred: Shaped[Array | np.ndarray, "h w"], mask: Shaped[Array | np.ndarray, "h w"]
) -> Float[Array | np.ndarray, ""]:
    """Share of one predicted mask that is right; `jax.vmap` for a batch."""
    return count(pred, mask).precision


def recall(
    pred: Shaped[Array | np.ndarray, "h w"], mask: Shaped[Array | np.ndarray, "h w"]
) -> Float[Array | np.ndarray, ""]:
    """Share of one true mask that is found; `jax.vmap` for a batch."""
    return count(pred, mask).recall
