"""Evaluation: counts of known predictions, reductions, intervals, padding."""

import csv
import io
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from eqxunet import load_split, metrics, predict
from eqxunet.data.cache import Split
from eqxunet.data.folder import open_folder
from eqxunet.evaluation import Predictor, per_image, score, score_at_own_size, summarise
from eqxunet.evaluation.summary import groups_of
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
    scores = score(Predictor(*model, Binary("trimap", "ignore"), 3), arrays, threshold=threshold)
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
    one, whole = (score(Predictor(*model, BINARY, size), arrays) for size in (1, 7))
    assert eqx.tree_equal(one.by_border, whole.by_border)
    np.testing.assert_allclose(one.losses, whole.losses, rtol=1e-6)


def test_one_image_has_no_interval(model):
    assert summarise(score(Predictor(*model, BINARY), split(1)))["iou"]["ci95"] is None


def test_rows_per_image(model):
    arrays = split()
    scores = score(Predictor(*model, BINARY), arrays)
    rows = per_image(scores)
    assert [row["name"] for row in rows] == list(arrays.names)
    assert list(rows[0])[:7] == ["name", "iou", "dice", "tp", "fp", "fn", "tn"]
    assert np.mean([row["iou"] for row in rows]) == pytest.approx(summarise(scores)["iou"]["mean"])
    writer = csv.DictWriter(io.StringIO(), rows[0])
    writer.writerows(rows)


def test_progress_ends_at_all_images(model):
    calls = []
    score(Predictor(*model, BINARY, 3), split(), progress=lambda *call: calls.append(call))
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


def disc(size, y, x, r):
    rows, columns = np.mgrid[:size, :size]
    return ((rows - y) ** 2 + (columns - x) ** 2 <= r**2).astype(np.uint8)


def painted(masks, predicted, names=None):
    """Images whose red is the probability of what is to be predicted."""
    images = np.zeros((*masks.shape, 3), np.uint8)
    images[..., 0] = np.where(predicted, 250, 5)
    return Split(images, masks, names or tuple(f"image {i}" for i in range(len(masks))), "mask")


def test_details_of_each_image(model):
    truth = np.stack([disc(32, 10, 12, 6), disc(32, 20, 20, 4), 0 * disc(32, 0, 0, 1)])
    predicted = np.stack([disc(32, 12, 12, 6), 0 * truth[0], 0 * truth[0]])
    scores = score(
        Predictor(*model, Binary("mask"), 2), painted(truth, predicted), is_detailed=True
    )
    np.testing.assert_array_equal(scores.details.predictions, predicted)
    pairs = list(zip(predicted, truth, strict=True))
    np.testing.assert_allclose(
        scores.details.boundary_iou, [metrics.boundary_iou(*p) for p in pairs]
    )
    np.testing.assert_allclose(scores.details.hausdorff95, [metrics.hausdorff95(*p) for p in pairs])
    assert scores.details.hausdorff95[1:].tolist() == [pytest.approx(32 * 2**0.5), 0]
    levels = np.where(predicted, 250, 5)  # floor(256 * 250 / 255), floor(256 * 5 / 255)
    np.testing.assert_array_equal(scores.details.levels, levels)
    np.testing.assert_array_equal(scores.details.histograms.sum((1, 2)), 32 * 32)
    assert scores.details.histograms[0, 1, 250] == (predicted[0] & truth[0]).sum()

    summary = summarise(scores)
    assert summary["empty"] == {"truth": 1, "prediction": 2, "both": 1}
    assert summary["boundary_iou"]["mean"] == pytest.approx(scores.details.boundary_iou.mean())
    right = (predicted == truth).mean((1, 2))
    assert summary["accuracy"]["mean"] == pytest.approx(right.mean())
    overlap = (predicted[0] & truth[0]).sum()
    # Where nothing is predicted of something, precision and recall are 0; of nothing, 1.
    assert summary["precision"]["mean"] == pytest.approx((overlap / predicted[0].sum() + 1) / 3)
    assert summary["recall"]["mean"] == pytest.approx((overlap / truth[0].sum() + 1) / 3)
    assert summary["pooled"]["recall"] == pytest.approx(overlap / truth.sum())


def test_scores_by_group_and_by_size(model):
    sizes = [2, 9, 3, 8, 5, 6]
    truth = np.stack([disc(32, 15, 15, r) for r in sizes])
    predicted = np.stack([disc(32, 15, 15, r - 1) for r in sizes])
    names = ("cat_1", "cat_2", "cat_10", "dog_1", "dog_2", "dog_03")
    scores = score(Predictor(*model, Binary("mask")), painted(truth, predicted, names))
    summary = summarise(scores)
    iou = predicted.sum((1, 2)) / truth.sum((1, 2))
    assert summary["groups"]["cat"]["iou"]["mean"] == pytest.approx(iou[:3].mean(), abs=1e-6)
    assert summary["groups"]["dog"]["images"] == 3
    assert summary["sizes"]["small"]["iou"]["mean"] == pytest.approx(iou[[0, 2]].mean(), abs=1e-6)
    assert summary["sizes"]["large"]["share"] == [pytest.approx(truth[i].mean()) for i in (3, 1)]
    assert [row["group"] for row in per_image(scores)] == ["cat"] * 3 + ["dog"] * 3


@pytest.mark.parametrize("names", [("a_1", "a_2"), ("a_1", "b_2"), ("a_1", "a_2", "b"), ("1", "2")])
def test_names_that_carry_no_group(names):
    assert groups_of(names) == []


def test_images_are_scored_at_their_own_size(model, tmp_path):
    """Of other sizes, with other scores, and where the size is the model's with the same."""
    (tmp_path / "images").mkdir(), (tmp_path / "masks").mkdir()
    shapes = {"a": (8, 8), "b": (24, 40), "c": (13, 7)}
    for name, shape in shapes.items():
        image = np.zeros((*shape, 3), np.uint8)
        image[:, : shape[1] // 2, 0] = 255
        Image.fromarray(image).save(tmp_path / "images" / f"{name}.png")
        mask = np.zeros(shape, np.uint8)
        mask[:, : shape[1] // 3] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    source = open_folder(tmp_path, "all", kind="mask")
    predictor = Predictor(*model, Binary("mask"), 2)
    own = score_at_own_size(predictor, source)
    assert own.names == ("a", "b", "c") and own.losses is None
    for matrix, (name, (h, w)) in zip(own.confusion, shapes.items(), strict=True):
        predicted = predict(*model, tmp_path / "images" / f"{name}.png") >= 0.5
        truth = np.arange(w) < w // 3
        expected = [[(~truth & ~predicted).sum(), (~truth & predicted).sum()],
                    [(truth & ~predicted).sum(), (truth & predicted).sum()]]  # fmt: skip
        assert matrix.tolist() == expected and matrix.sum() == h * w
    squashed = score(predictor, load_split(tmp_path, "all", size=8), is_detailed=True)
    assert own.confusion[0].tolist() == squashed.confusion[0].tolist()
    assert own.details.hausdorff95[0] == squashed.details.hausdorff95[0]
    assert own.details.predictions.shape == (3, 8, 8)
