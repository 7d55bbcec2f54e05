"""Scores of outlines against loops over pixels."""

import math

import numpy as np
import pytest

from eqxunet import metrics

RNG = np.random.default_rng(0)


def blobs(h, w, share):
    """A random mask of smooth patches."""
    y, x = np.mgrid[:h, :w]
    waves = sum(
        np.sin(a * y + b * x + c) for a, b, c in RNG.uniform((-0.5, -0.5, 0), (0.5, 0.5, 6), (5, 3))
    )
    return waves > np.quantile(waves, 1 - share)


def one_pixel(h, w, y, x):
    mask = np.zeros((h, w), bool)
    mask[y, x] = True
    return mask


def near_the_outside(mask, width):
    """Pixels of a mask from which some pixel outside, or outside the image, is within `width`."""
    h, w = mask.shape
    near = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        window = [
            0 <= y + i < h and 0 <= x + j < w and mask[y + i, x + j]
            for i in range(-width, width + 1)
            for j in range(-width, width + 1)
        ]
        near[y, x] = not all(window)
    return near


def outline(mask):
    """Pixels of a mask with one of their four neighbours outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~inner)


MASKS = [(blobs(40, 31, p), blobs(40, 31, q)) for p in (0.1, 0.5) for q in (0.3, 0.9)]
MASKS += [
    (one_pixel(9, 60, 4, 7), blobs(9, 60, 0.4)),
    (one_pixel(6, 6, 0, 0), one_pixel(6, 6, 5, 4)),
]
MASKS += [(RNG.random((20, 25)) < 0.3, RNG.random((20, 25)) < 0.6)]
MASKS += [(np.ones((70, 90), bool), blobs(70, 90, 0.7))]


@pytest.mark.parametrize(("pred", "mask"), MASKS)
def test_boundary_iou(pred, mask):
    width = max(1, round(0.02 * math.hypot(*mask.shape)))
    ours, theirs = near_the_outside(pred, width), near_the_outside(mask, width)
    expected = (ours & theirs).sum() / (ours | theirs).sum()
    assert metrics.boundary_iou(pred, mask) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("pred", "mask"), MASKS)
def test_hausdorff95(pred, mask):
    ours, theirs = outline(pred), outline(mask)
    pairs = np.sqrt(((ours[:, None] - theirs[None]) ** 2).sum(-1))
    expected = max(np.percentile(pairs.min(axis), 95) for axis in (0, 1))
    assert metrics.hausdorff95(pred, mask) == pytest.approx(expected, abs=1e-6)
    assert metrics.hausdorff95(mask, pred) == pytest.approx(expected, abs=1e-6)


def test_masks_with_nothing_in_them():
    nothing, something = np.zeros((30, 40), bool), blobs(30, 40, 0.2)
    assert metrics.boundary_iou(nothing, nothing) == 1
    assert metrics.boundary_iou(nothing, something) == metrics.boundary_iou(something, nothing) == 0
    assert metrics.hausdorff95(nothing, nothing) == 0
    assert metrics.hausdorff95(nothing, something) == metrics.hausdorff95(something, nothing) == 50


def test_equal_masks_are_perfect():
    for mask in (np.ones((12, 9), np.uint8), 255 * blobs(12, 9, 0.4).astype(np.uint8)):
        assert metrics.boundary_iou(mask, mask) == 1
        assert metrics.hausdorff95(mask, mask) == 0
