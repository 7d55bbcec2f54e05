"""Comparison by the largest difference: cosine similarity hides wrong padding."""

import numpy as np


def assert_close(got, want, tolerance: float, what: str = "") -> None:
    """Fails unless max |got - want| <= tolerance * max |want|, for arrays of equal shape."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, want {want.shape}"
    difference, scale = np.max(np.abs(got - want)), np.max(np.abs(want))
    assert difference <= tolerance * scale, f"{what}: off by {difference} at a scale of {scale}"
