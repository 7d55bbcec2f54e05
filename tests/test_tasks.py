"""Tasks: targets, losses and scores against NumPy, class by class."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxunet.evaluation import mean_intervals
from eqxunet.tasks import IGNORED, TASKS, Binary, Semantic, confusion_matrix, losses, make_task

RNG = np.random.default_rng(0)
THREE = Semantic(("ground", "cat", "dog"))
TRUTH = RNG.integers(0, 3, (5, 6, 7)).astype(np.uint8)
TRUTH[:, 0] = IGNORED
TRUTH[1][TRUTH[1] == 2] = 0  # an image without dogs
PREDICTION = RNG.integers(0, 3, (5, 6, 7)).astype(np.uint8)
PREDICTION[1][PREDICTION[1] == 2] = 1  # of which none are predicted either


def matrices():
    count = jax.vmap(lambda p, t: confusion_matrix(p, t, 3))
    return np.asarray(count(PREDICTION, TRUTH), np.int64)


@pytest.mark.parametrize(
    ("border", "binary", "species"),
    [
        ("foreground", [1, 0, 1], [0, 1, 2, 1, 2]),
        ("background", [1, 0, 0], [0, 1, 2, 0, 0]),
        ("ignore", [1, 0, 255], [0, 1, 2, 255, 255]),
    ],
)
def test_targets_of_labels_that_have_a_border(border, binary, species):
    trimap, five = np.array([[1, 2, 3]], np.uint8), np.arange(5, dtype=np.uint8)[None]
    assert Binary("trimap", border).targets(trimap)[0].tolist() == binary
    task = dataclasses.replace(THREE, kind="species", border=border)
    assert task.targets(five)[0].tolist() == species


def test_targets_of_other_labels():
    assert Binary("mask").targets(np.array([[0, 1]], np.uint8))[0].tolist() == [0, 1]
    indices = np.array([[0, 2, 255]], np.uint8)
    assert THREE.targets(indices)[0].tolist() == [0, 2, IGNORED]
    trimap = Semantic(("background", "pet", "border"), "trimap")
    assert trimap.targets(np.array([[1, 2, 3]], np.uint8))[0].tolist() == [1, 0, 2]
    assert not trimap.has_border and Binary("trimap").has_border


def test_the_confusion_matrix_counts_pairs():
    for matrix, prediction, truth in zip(matrices(), PREDICTION, TRUTH, strict=True):
        for t in range(3):
            for p in range(3):
                assert matrix[t, p] == ((truth == t) & (prediction == p)).sum()


def test_an_images_score_is_the_mean_over_the_classes_it_has():
    for i, (iou, dice) in enumerate(
        zip(THREE.score("iou", matrices()), THREE.score("dice", matrices()), strict=True)
    ):
        valid = TRUTH[i] != IGNORED
        ious, dices = [], []
        for k in range(3):
            true, predicted = (TRUTH[i] == k)[valid], (PREDICTION[i] == k)[valid]
            if (true | predicted).any():
                ious.append((true & predicted).sum() / (true | predicted).sum())
                dices.append(2 * (true & predicted).sum() / (true.sum() + predicted.sum()))
        assert len(ious) == (2 if i == 1 else 3)
        assert iou == pytest.approx(np.mean(ious), abs=1e-5)
        assert dice == pytest.approx(np.mean(dices), abs=1e-5)
    np.testing.assert_allclose(
        THREE.score("iou", jnp.asarray(matrices())), THREE.score("iou", matrices()), rtol=1e-5
    )


def test_an_image_of_which_nothing_counts_scores_1():
    assert THREE.score("iou", np.zeros((1, 3, 3), np.int64)) == 1
    assert Binary().score("iou", np.zeros((1, 2, 2), np.int64)) == 1


def test_details_by_class():
    confusion = matrices()
    details = THREE.details(confusion, mean_intervals)
    pooled = confusion.sum(0)
    assert details["confusion"] == pooled.tolist()
    dog = details["per_class"]["dog"]
    assert dog["images"] == 4
    have_dogs = [0, 2, 3, 4]
    ious = [
        confusion[i, 2, 2] / (confusion[i, 2].sum() + confusion[i, :, 2].sum() - confusion[i, 2, 2])
        for i in have_dogs
    ]
    assert dog["iou"]["mean"] == pytest.approx(np.mean(ious), abs=1e-5)
    union = pooled[2].sum() + pooled[:, 2].sum() - pooled[2, 2]
    assert dog["pooled_iou"] == pytest.approx(pooled[2, 2] / union)


def test_a_class_in_no_image_has_no_score():
    details = Semantic(("a", "b", "c", "d")).details(
        np.pad(matrices(), ((0, 0), (0, 1), (0, 1))), mean_intervals
    )
    assert details["per_class"]["d"] == {
        "iou": None, "dice": None, "pooled_iou": None, "images": 0,
    }  # fmt: skip


def test_the_softmax_loss_is_its_formula():
    logits = RNG.normal(size=(6, 7, 3)).astype(np.float32) * 2
    truth = TRUTH[0]
    valid = truth != IGNORED
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    chosen = np.take_along_axis(p, np.where(valid, truth, 0)[..., None], -1)[..., 0]
    entropy = -np.log(chosen)[valid].mean()
    dices = []
    for k in range(3):
        share, mask = p[..., k][valid], (truth == k)[valid]
        dices.append(1 - 2 * share[mask].sum() / (share.sum() + mask.sum()))
    got = losses.softmax_loss(jnp.asarray(logits), jnp.asarray(truth))
    assert got == pytest.approx(entropy + np.mean(dices), rel=1e-5)


def test_a_class_that_an_image_lacks_has_no_part_in_its_dice():
    truth = jnp.zeros((4, 4), jnp.uint8)
    logits = jnp.zeros((4, 4, 3)).at[..., 0].set(50.0)
    assert losses.softmax_loss(logits, truth) == pytest.approx(0, abs=1e-5)


def test_the_softmax_loss_of_nothing_is_finite():
    nothing = jnp.full((4, 4), IGNORED, jnp.uint8)
    loss, gradient = jax.value_and_grad(losses.softmax_loss)(jnp.ones((4, 4, 3)), nothing)
    assert loss == 0 and (gradient == 0).all()


def test_two_classes_are_scored_like_foreground():
    """Foreground's own score is a class of the two."""
    confusion = matrices()[:, :2, :2]
    binary = Binary().score("iou", confusion)
    two = Semantic(("background", "foreground"))
    inverted = Binary().score("iou", confusion[:, ::-1, ::-1])
    np.testing.assert_allclose(two.score("iou", confusion), (binary + inverted) / 2)


def test_predictions():
    logits = jnp.asarray([[[-1.0], [0.0], [2.0]]])
    assert Binary().prediction(logits).tolist() == [[0, 1, 1]]
    assert Binary().prediction(logits, 0.8).tolist() == [[0, 0, 1]]
    assert THREE.prediction(jnp.asarray([[[0.0, 3.0, 1.0]]])).tolist() == [[1]]
    np.testing.assert_allclose(THREE.probability(jnp.zeros((1, 1, 3))), np.full((1, 1, 3), 1 / 3))


def test_colours_differ():
    many = Semantic(tuple(map(str, range(40))))
    assert len({tuple(colour) for colour in many.colours}) == 40
    assert many.colours[:3].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_makes_classes_of_its_outputs(name):
    task = (
        make_task(name, kind="species", classes=("g", "cat", "dog"), border="ignore")
        if name == "semantic"
        else make_task(name, kind="mask", classes=("a", "b"), border="ignore")
    )
    logits = jnp.asarray(RNG.normal(size=(6, 7, task.outputs)), jnp.float32)
    prediction = task.prediction(logits)
    assert prediction.shape == (6, 7) and prediction.max() < len(task.classes)
    assert jnp.isfinite(task.loss(logits, prediction))
    assert task.colours.shape == (len(task.classes), 3)
