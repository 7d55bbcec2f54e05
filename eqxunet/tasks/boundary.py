"""Scores of a mask's outline: boundary IoU, and Hausdorff distance in pixels."""

import math
from typing import Any

import numpy as np
import scipy  # whose parts load where they are used: not in training
from jaxtyping import Array, Bool, Shaped

_WIDTH = 0.02  # of a boundary, as a share of the image's diagonal
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)


def boundary_iou(
    pred: Shaped[Array | np.ndarray, "h w"], mask: Shaped[Array | np.ndarray, "h w"]
) -> float:
    """IoU of what lies along the outlines of a predicted mask and the true one.

    That is within 2% of the image's diagonal, in pixels of the mask, by the Chebyshev distance; the
    edge of the image is outline too. Two empty masks score 1, and one of both 0. Boundary IoU of
    Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021.

    Arguments:

    - `pred`, `mask`: nonzero is foreground.
    """
    ours, theirs = _foreground(pred), _foreground(mask)
    width = max(1, round(_WIDTH * math.hypot(*mask.shape)))
    ours, theirs = _boundary(ours, width), _boundary(theirs, width)
    union = np.count_nonzero(ours | theirs)
    return np.count_nonzero(ours & theirs) / union if union else 1.0


def hausdorff95(
    pred: Shaped[Array | np.ndarray, "h w"], mask: Shaped[Array | np.ndarray, "h w"]
) -> float:
    """The 95th percentile of the Hausdorff distance of two masks' outlines, in pixels.

    The larger of both directions' percentiles of the distance from a pixel of one outline to the
    nearest of the other's. Two empty masks are 0 pixels apart; where one of both is empty, the
    distance is the image's diagonal.

    Arguments:

    - `pred`, `mask`: nonzero is foreground.
    """
    ours, theirs = _foreground(pred), _foreground(mask)
    if not ours.any() or not theirs.any():
        return math.hypot(*mask.shape) if ours.any() or theirs.any() else 0.0
    rows, columns = (np.flatnonzero((ours | theirs).any(axis=axis)) for axis in (1, 0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    ours, theirs = _outline(ours[window]), _outline(theirs[window])
    return max(_distance95(ours, theirs), _distance95(theirs, ours))


def _foreground(mask: Shaped[Array | np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return np.asarray(mask) != 0


def _boundary(mask: Bool[np.ndarray, "h w"], width: int) -> Bool[np.ndarray, "h w"]:
    inner = scipy.ndimage.minimum_filter(
        mask.astype(np.uint8), 2 * width + 1, mode="constant", cval=0
    )
    return mask & (inner == 0)


def _outline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return mask & ~scipy.ndimage.binary_erosion(mask, _CROSS)


def _distance95(of: Bool[np.ndarray, "h w"], to: Bool[np.ndarray, "h w"]) -> float:
    distances: Any = scipy.ndimage.distance_transform_edt(~to)
    return float(np.percentile(distances[of], 95))
