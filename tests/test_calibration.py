"""Thresholds and temperatures against loops and what probabilities were drawn from."""

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from eqxunet.data import Split
from eqxunet.evaluation import Predictor, calibrate, score
from eqxunet.evaluation.calibration import threshold_curve
from eqxunet.evaluation.details import to_levels
from eqxunet.models import AbstractEncoder, UNet
from eqxunet.tasks import Binary, Semantic

RNG = np.random.default_rng(0)


class Channels(AbstractEncoder):
    """One map, of the image's size: its pixels."""

    in_channels: ClassVar[int] = 3
    channels: ClassVar[tuple[int, ...]] = (3,)
    strides: ClassVar[tuple[int, ...]] = (1,)
    has_pretrained_weights: ClassVar[bool] = False

    def __call__(self, image, state):
        return (image,), state


def predictor(task, weights, bias):
    """Predicts logits that are `weights` times the channels of a pixel."""
    model, state = eqx.nn.make_with_state(UNet)(
        Channels(), outputs=task.outputs, size=16, key=jax.random.key(0)
    )
    kernel = jnp.asarray(weights, jnp.float32).T.reshape(1, 1, 3, task.outputs)
    bias = jnp.asarray(bias, jnp.float32)
    return Predictor(
        eqx.tree_at(lambda m: (m.head.kernel, m.head.bias), model, (kernel, bias)), state, task, 4
    )


def binary_split(count=20, scale=6.0):
    """Truth drawn with the probability that a pixel's red says, as a logit of up to 3."""
    images = RNG.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    probability = expit(scale * (images[..., 0] / 255 - 0.5))
    labels = (RNG.random(probability.shape) < probability).astype(np.uint8)
    return Split(images, labels, tuple(map(str, range(count))), "mask")


def three_split(count=20):
    images = RNG.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    scores = np.exp(4 * (images / 255.0))
    cumulative = np.cumsum(scores / scores.sum(-1, keepdims=True), -1)
    labels = (RNG.random((count, 16, 16, 1)) > cumulative).sum(-1).astype(np.uint8)
    labels[:, 0] = 255  # not counted
    return Split(images, labels, tuple(map(str, range(count))), "classes", ("a", "b", "c"))


@pytest.mark.parametrize("heat", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_overconfidence(heat):
    """Logits are `heat` times those that labels were drawn from."""
    binary = predictor(Binary(), [[6 * heat, 0, 0]], [-3 * heat])
    found = calibrate(binary, binary_split(60))
    assert found.temperature == pytest.approx(heat, rel=0.05)
    assert found.ece < 0.02 and (heat == 1 or found.ece_before > 2 * found.ece)
    three = predictor(Semantic(("a", "b", "c")), 4 * heat * np.eye(3), [0, 0, 0])
    assert calibrate(three, three_split(60)).temperature == pytest.approx(heat, rel=0.05)


def test_the_temperature_has_the_smallest_cross_entropy():
    split, model = binary_split(), predictor(Binary(), [[9, 2, 0]], [-5])
    found = calibrate(model, split).temperature
    logits = (split.images / 255.0) @ [9, 2, 0] - 5

    def cross_entropy(temperature):
        return np.mean(np.logaddexp(0, np.where(split.labels == 1, -1, 1) * logits / temperature))

    grid = np.geomspace(0.1, 10, 2001)
    best = grid[np.argmin([cross_entropy(t) for t in grid])]
    assert found == pytest.approx(best, rel=0.005)


def expected_calibration_error(confidence, right):
    total = 0.0
    for k in range(15):
        chosen = (confidence >= k / 15) & ((confidence < (k + 1) / 15) | (k == 14))
        if chosen.any():
            total += chosen.sum() * abs(confidence[chosen].mean() - right[chosen].mean())
    return total / confidence.size


def test_calibration_errors_are_sums_over_bins():
    split = binary_split()
    found = calibrate(predictor(Binary(), [[9, 2, 0]], [-5]), split)
    logits = ((split.images / 255.0) @ [9, 2, 0] - 5).astype(np.float32)
    for temperature, error in ((1.0, found.ece_before), (found.temperature, found.ece)):
        p = expit(logits / np.float32(temperature))
        assert error == pytest.approx(expected_calibration_error(p, split.labels == 1), abs=1e-5)
    assert sum(found.bins["count"]) == split.labels.size

    three = three_split()
    found = calibrate(predictor(Semantic(("a", "b", "c")), 9 * np.eye(3), [0, 0, 0]), three)
    scores = np.exp(9 * (three.images / 255.0))
    p = scores / scores.sum(-1, keepdims=True)
    counted = three.labels != 255
    right = (p.argmax(-1) == three.labels)[counted]
    error = expected_calibration_error(p.max(-1)[counted], right)
    assert found.ece_before == pytest.approx(error, abs=1e-5)
    assert found.curve is None and found.threshold == 0.5


def test_the_curve_is_scores_at_each_threshold():
    split, model = binary_split(6), predictor(Binary(), [[9, 2, 0]], [-5])
    found = calibrate(model, split)
    calibrated = dataclasses.replace(model, temperature=found.temperature)
    curve = found.curve
    assert curve["threshold"] == [k / 256 for k in range(1, 256)]
    for k in (1, 60, 128, 240):
        scores = score(calibrated, split, threshold=k / 256)
        tp, fp, fn = (scores.confusion[:, i, j] for i, j in ((1, 1), (0, 1), (1, 0)))
        dice = np.mean(2 * tp / (2 * tp + fp + fn))
        assert curve["dice"][k - 1] == pytest.approx(dice, abs=1e-6)
        assert curve["precision"][k - 1] == pytest.approx(tp.sum() / (tp + fp).sum(), abs=1e-6)
        assert curve["recall"][k - 1] == pytest.approx(tp.sum() / (tp + fn).sum(), abs=1e-6)
    assert max(curve["dice"]) == curve["dice"][round(found.threshold * 256) - 1]


def test_levels_tell_every_threshold_apart():
    edges = np.arange(257, dtype=np.float32) / 256
    p = np.concatenate([edges, np.nextafter(edges, np.float32(0))[1:]])
    for k in range(1, 256):
        assert ((to_levels(p) >= k) == (p >= k / 256)).all()


def test_a_curve_of_nothing_is_1():
    nothing = threshold_curve(np.zeros((2, 2, 256), np.int64))
    assert nothing["dice"] == [1.0] * 255 and nothing["precision"] == [1.0] * 255
