"""Intervals of means: against NumPy and SciPy, what they cover, and what they cost."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from eqxunet.evaluation import mean_intervals

RNG = np.random.default_rng(7)


def ends(values):
    return np.array([result["ci95"] for result in mean_intervals(values)])


def test_intervals_are_percentiles_of_means_of_resamples():
    """In NumPy with all indices at once; with values that some images lack."""
    values = RNG.beta(5, 2, (130, 3))  # 9,999 x 130 indices are more than are drawn at a time
    values[RNG.random(130) < 0.4, 1] = np.nan
    resamples = np.random.default_rng(0).integers(0, 130, (9_999, 130))
    means = np.nanmean(values[resamples], axis=1)
    np.testing.assert_allclose(
        ends(values), np.quantile(means, (0.025, 0.975), axis=0).T, rtol=1e-12
    )
    expected = np.nanmean(values, axis=0)
    np.testing.assert_allclose([r["mean"] for r in mean_intervals(values)], expected, rtol=1e-12)


def test_intervals_are_those_of_scipy_but_for_chance():
    """A 2.5% quantile of 9,999 means has a standard error of 0.027 standard deviations of the mean,
    the difference of two 0.038; four of these are 0.15."""
    values = RNG.beta(5, 2, (80, 1))
    theirs = stats.bootstrap((values[:, 0],), np.mean, method="percentile", rng=3)
    deviation = values.std() / np.sqrt(80)
    assert np.abs(ends(values)[0] - theirs.confidence_interval).max() < 0.15 * deviation


def test_the_interval_of_a_difference_is_paired():
    """That of the difference of the means of the same resamples; much narrower than unpaired."""
    a = RNG.beta(5, 2, 90)
    b = a + 0.01 + 0.01 * RNG.standard_normal(90)
    of_a, of_b, of_difference = ends(np.stack([a, b, b - a], axis=1))
    resamples = np.random.default_rng(0).integers(0, 90, (9_999, 90))
    differences = b[resamples].mean(axis=1) - a[resamples].mean(axis=1)
    np.testing.assert_allclose(
        of_difference, np.quantile(differences, (0.025, 0.975)), rtol=1e-9, atol=1e-12
    )
    assert of_difference[0] > 0 and of_a[1] > of_b[0]


def test_values_that_are_not_there():
    nan = np.nan
    values = np.array([[0.25, nan, 0.5, nan], [0.25, 0.75, nan, nan], [0.25, 0.25, nan, nan]])
    same, two, one, none = mean_intervals(values)
    assert same == {"mean": 0.25, "ci95": [0.25, 0.25]}
    assert two == {"mean": 0.5, "ci95": [0.25, 0.75]}
    assert one == {"mean": 0.5, "ci95": None}
    assert none == {"mean": None, "ci95": None}
    assert mean_intervals(values[:1, :1]) == [{"mean": 0.25, "ci95": None}]
    assert mean_intervals(np.empty((5, 0))) == []


def test_the_same_bits_every_time():
    values = RNG.beta(5, 2, (200, 4))
    assert mean_intervals(values) == mean_intervals(values)


@pytest.mark.parametrize(("a", "b"), [(6.0, 1.5), (1.0, 3.0)])
def test_95_percent_of_intervals_cover_the_mean(a, b):
    """Of scores as skewed as IoU is, 100 images; 2,500 samples leave an error of 0.44 points."""
    covered = []
    for _ in range(5):
        low, high = ends(RNG.beta(a, b, (100, 500))).T
        covered.append((low <= a / (a + b)) & (a / (a + b) <= high))
    assert 0.93 < np.mean(covered) < 0.97


def test_memory_is_bounded():
    """All resamples of Oxford-IIIT Pet's test split would be 293 MB of indices alone."""
    values = RNG.beta(5, 2, (3_669, 8))
    tracemalloc.start()
    try:
        mean_intervals(values)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64e6
