import numpy as np
import pytest
from PIL import Image

from eqxunet.data.source import open_source
from eqxunet.data.synthetic import COUNTS, SyntheticPets

COUNT = 40


@pytest.fixture(scope="module")
def examples():
    return [SyntheticPets("train")[i] for i in range(COUNT)]


def is_foreground(example) -> np.ndarray:
    return example.mask != 2


def iou(prediction: np.ndarray, mask: np.ndarray) -> float:
    return (prediction & mask).sum() / (prediction | mask).sum()


def test_drawing_depends_on_split_and_index_only(examples):
    for index in (7, 3):
        again = SyntheticPets("train", limit=9)[index]
        np.testing.assert_array_equal(again.image, examples[index].image)
        np.testing.assert_array_equal(again.mask, examples[index].mask)
    drawn = [examples[3], examples[4], SyntheticPets("val")[3]]
    assert len({(e.image.tobytes()) for e in drawn}) == 3
    assert len({SyntheticPets(split).identity for split in (*COUNTS, "all")}) == 4
    pets = SyntheticPets("all")
    assert len(pets) == sum(COUNTS.values()) and pets[803].name == "val_0003"
    np.testing.assert_array_equal(pets[803].image, drawn[2].image)


def test_counts_names_and_limit():
    assert {split: len(SyntheticPets(split)) for split in COUNTS} == COUNTS
    source = open_source("synthetic", "val", limit=2)
    assert len(source) == 2 and source[1].name == "val_0001"
    assert source.identity != open_source("synthetic", "val").identity
    with pytest.raises(IndexError):
        source[2]


def test_trimaps_have_a_pet_of_fair_size_with_a_border_around_it(examples):
    shares = np.array([[(e.mask == k).mean() for k in (1, 2, 3)] for e in examples])
    assert set(np.unique(np.concatenate([e.mask.ravel() for e in examples]))) == {1, 2, 3}
    assert (shares[:, 0] > 0.02).all() and (shares[:, 1] > 0.15).all()
    mean = shares.mean(0)
    assert 0.2 < mean[0] < 0.4 and 0.08 < mean[2] < 0.2
    for example in examples:
        pet, ground = example.mask == 1, example.mask == 2
        touching = pet[1:] & ground[:-1] | pet[:-1] & ground[1:]
        assert not touching.any()


def test_sizes_vary(examples):
    assert {e.image.shape[:2] for e in examples} == {e.mask.shape for e in examples}
    sides = [side for e in examples for side in e.mask.shape]
    assert min(sides) >= 112 and max(sides) <= 160 and len(set(sides)) > 20


def test_no_threshold_on_brightness_finds_the_pet(examples):
    grey = [np.asarray(Image.fromarray(e.image).convert("L")) for e in examples]
    masks = [is_foreground(e) for e in examples]
    scores = [
        np.mean([iou((g >= level) == above, m) for g, m in zip(grey, masks, strict=True)])
        for level in range(0, 256, 8)
        for above in (True, False)
    ]
    assert max(scores) < 0.5


def test_no_linear_rule_on_colour_finds_the_pet(examples):
    pixels = np.concatenate([e.image.reshape(-1, 3)[::7] for e in examples]) / 255
    truth = np.concatenate([is_foreground(e).reshape(-1)[::7] for e in examples])
    features = np.concatenate([pixels, pixels**2, np.ones((len(pixels), 1))], -1)
    weights = np.zeros(7)
    for _ in range(8):  # Newton's method
        probability = 1 / (1 + np.exp(-features @ weights))
        slope = (probability * (1 - probability))[:, None]
        hessian = features.T @ (features * slope) + 1e-6 * np.eye(7)
        weights += np.linalg.solve(hessian, features.T @ (truth - probability))
    score = features @ weights
    scores = [iou(score > level, truth) for level in np.quantile(score, np.linspace(0, 0.9, 19))]
    assert max(scores) < 0.6


def test_coat_and_ground_have_the_same_colours(examples):
    pet = np.concatenate([e.image[e.mask == 1] for e in examples]) / 255
    ground = np.concatenate([e.image[e.mask == 2] for e in examples]) / 255
    assert np.abs(pet.mean(0) - ground.mean(0)).max() < 0.15
    assert (pet.std(0) > 0.15).all() and (ground.std(0) > 0.15).all()
