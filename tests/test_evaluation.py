"""Evaluation: counts of known predictions, reductions, intervals, padding."""

import csv
import io
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxunet import predict
from eqxunet.data.cache import Split
from eqxunet.evaluation import per_image, score, summarise
from eqxunet.models import AbstractEncoder, UNet
from eqxunet.tasks import Binary
from eqxunet.tasks.metrics import Counts

BINARY = Binary("trimap")
RNG = np.random.default_rng(0)


class Reddish(AbstractEncoder):
    """One map, of the image's size: the logit of the red channel."""

    in_channels: ClassVar[int] = 3
    channels: ClassVar[tuple[int, ...]] = (1,)
    strides: ClassVar[tuple[int, ...]] = (1,)
    has_pretrained_weights: ClassVar[bool] = False

    def __call__(self, image, state):
        red = jnp.clip(image[..., :1], 1e-6, 1 - 1e-6)
        return (jnp.log(red) - jnp.log1p(-red),), state


@pytest.fixture
def model():
    """Predicts foreground with the probability that is the red channel."""
    model, state = eqx.nn.make_with_state(UNet)(Reddish(), size=8, key=jax.random.key(0))
    return eqx.tree_at(lambda m: m.head.kernel, model, jnp.ones((1, 1, 1, 1))), state


def split(count=7, size=8):
    images = RNG.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    trimaps = RNG.integers(1, 4, (count, size, size)).astype(np.uint8)
    return Split(images, trimaps, tuple(f"image {i}" for i in range(count)))


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_scores_equal_sums_over_each_image(model, threshold):
    arrays = split()
    scores = score(*model, arrays, Binary("trimap", "ignore"), batch_size=3, threshold=threshold)
    pred = arrays.images[..., 0] / 255 >= threshold
    for border, mask, counted in (
        ("foreground", arrays.labels != 2, arrays.labels > 0),
        ("background", arrays.labels == 1, arrays.labels > 0),
        ("ignore", arrays.labels == 1, arrays.labels != 3),
    ):
        counts = Counts(**Binary("trimap").columns(scores.by_border[border]))
        np.testing.assert_array_equal(counts.tp, (pred & mask & counted).sum((1, 2)))
        np.testing.assert_array_equal(counts.fp, (pred & ~mask & counted).sum((1, 2)))
        np.testing.assert_array_equal(counts.fn, (~pred & mask & counted).sum((1, 2)))
        np.testing.assert_array_equal(counts.tn, (~pred & ~mask & counted).sum((1, 2)))

    summary = summarise(scores)
    counts = Counts(**Binary("trimap").columns(scores.confusion))
    iou = counts.tp / (counts.tp + counts.fp + counts.fn)
    assert summary["count"] == 7 and summary["border"] == "ignore"
    assert summary["iou"]["mean"] == pytest.approx(iou.mean())
    pooled = counts.tp.sum() / (counts.tp + counts.fp + counts.fn).sum()
    assert summary["pooled"]["iou"] == pytest.approx(pooled)
    assert summary["by_border"]["ignore"]["iou"] == summary["iou"]


def test_the_batch_size_does_not_matter(model):
    arrays = split()
    one, whole = (score(*model, arrays, BINARY, batch_size=size) for size in (1, 7))
    assert eqx.tree_equal(one.by_border, whole.by_border)
    np.testing.assert_allclose(one.losses, whole.losses, rtol=1e-6)


def test_the_interval_covers_the_mean_as_often_as_it_says(model):
    """Of intervals from 200 normal samples of 100, about 95% cover the true mean."""
    from eqxunet.evaluation.scoring import _mean_with_interval

    covered = 0
    for _ in range(200):
        low, high = _mean_with_interval(0.7 + 0.1 * RNG.standard_normal(100))["ci95"]
        covered += low <= 0.7 <= high
    assert 176 <= covered <= 200


def test_one_image_has_no_interval(model):
    assert summarise(score(*model, split(1), BINARY))["iou"]["ci95"] is None


def test_rows_per_image(model):
    arrays = split()
    scores = score(*model, arrays, BINARY)
    rows = per_image(scores)
    assert [row["name"] for row in rows] == list(arrays.names)
    assert list(rows[0])[:7] == ["name", "iou", "dice", "tp", "fp", "fn", "tn"]
    assert np.mean([row["iou"] for row in rows]) == pytest.approx(summarise(scores)["iou"]["mean"])
    writer = csv.DictWriter(io.StringIO(), rows[0])
    writer.writerows(rows)


def test_progress_ends_at_all_images(model):
    calls = []
    score(*model, split(), BINARY, batch_size=3, progress=lambda *call: calls.append(call))
    assert calls == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (1, 1), (40, 30)])
def test_predict_returns_probabilities_at_the_size_of_the_image(model, size):
    image = np.full((*size, 3), 51, np.uint8)
    probability = predict(*model, image)
    assert probability.dtype == np.float32 and probability.shape == size
    np.testing.assert_allclose(probability, 0.2, rtol=1e-4)


def test_predict_resizes_logits_not_probabilities(model):
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 8:] = 255
    probability = predict(*model, image)
    assert probability[0, 0] < 1e-5 and probability[0, -1] > 1 - 1e-5
    logits = np.log(probability) - np.log1p(-probability.astype(np.float64))
    steps = np.diff(logits[0])
    assert (steps > -1e-3).all()


def test_models_in_training_mode_are_refused_outside_a_batch():
    from eqxunet import ModelConfig, build

    model, state = build(ModelConfig(channels=(2, 3)), key=jax.random.key(0))
    with pytest.raises(
        RuntimeError, match=r"batched\(model\).*axis_name=\"batch\".*inference_mode"
    ):
        model(jnp.zeros((8, 8, 3)), state)
