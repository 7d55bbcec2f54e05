"""Scores against NumPy sums and the article's relation between them."""

import jax
import numpy as np
import pytest

from eqxunet import metrics

RNG = np.random.default_rng(0)
PRED, MASK = RNG.random((5, 9, 7)) < 0.4, RNG.random((5, 9, 7)) < 0.6


def test_iou_and_dice():
    iou = np.array([(p & m).sum() / (p | m).sum() for p, m in zip(PRED, MASK, strict=True)])
    got = jax.vmap(metrics.iou)(PRED, MASK)
    np.testing.assert_allclose(got, iou, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(metrics.dice)(PRED, MASK), 2 * iou / (1 + iou), rtol=1e-5)


@pytest.mark.parametrize(
    ("pred", "mask", "score"), [(0, 0, 1.0), (1, 1, 1.0), (0, 1, 0.0), (1, 0, 0.0)]
)
def test_uniform_masks(pred, mask, score):
    masks = np.full((4, 4), pred, np.uint8), np.full((4, 4), mask, np.uint8)
    assert metrics.iou(*masks) == pytest.approx(score, abs=1e-6)
    assert metrics.dice(*masks) == pytest.approx(score, abs=1e-6)


def test_any_nonzero_value_is_foreground():
    assert metrics.iou(np.array([[255, 0]]), np.array([[1, 0]])) == 1


def test_pixels_left_out_do_not_count():
    valid = RNG.random((9, 7)) < 0.5
    counts = metrics.count(PRED[0], MASK[0], valid)
    assert sum(int(c) for c in counts) == valid.sum()
    assert counts.tp == (PRED[0] & MASK[0] & valid).sum()
    assert counts.fp == (PRED[0] & ~MASK[0] & valid).sum()
    assert counts.accuracy == pytest.approx((PRED[0] == MASK[0])[valid].mean())


def test_probabilities_are_refused():
    with pytest.raises(ValueError, match="pred is float32: compare"):
        metrics.iou(PRED[0].astype(np.float32), MASK[0])
    with pytest.raises(ValueError, match="mask is float64"):
        metrics.dice(PRED[0], MASK[0].astype(np.float64))
