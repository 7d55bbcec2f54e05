import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxunet.data import augment as module
from eqxunet.data.augment import augment, to_float

SIZE = 32
KEYS = jax.random.split(jax.random.key(0), 64)


@pytest.fixture(scope="module")
def many():
    """Augments one example with many keys."""
    return jax.jit(jax.vmap(lambda i, t, key: augment(i, t, key=key), in_axes=(None, None, 0)))


def noise(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    return image, rng.integers(1, 4, (SIZE, SIZE), np.uint8)


@pytest.fixture
def colourless(monkeypatch):
    for name in ("BRIGHTNESS", "CONTRAST", "SATURATION", "TINT", "GREY"):
        monkeypatch.setattr(module, name, 0.0)


def test_image_and_trimap_move_together(colourless):
    # Red and green tell a pixel's place, so the trimap can be read off the image.
    place = (jnp.arange(SIZE) + 0.5) / SIZE
    red, green = jnp.meshgrid(place, place)
    image = jnp.stack([red, green, jnp.zeros_like(red)], -1)
    trimap = (1 + (red > 0.5) + (green > 0.5)).astype(jnp.uint8)
    move = jax.jit(jax.vmap(lambda key: augment(image, trimap, key=key)))
    images, trimaps = map(np.asarray, move(KEYS))
    red, green = images[..., 0], images[..., 1]
    expected = 1 + (red > 0.5) + (green > 0.5)
    near_an_edge = np.minimum(np.abs(red - 0.5), np.abs(green - 0.5)) < 0.6 / SIZE
    assert near_an_edge.mean() < 0.2
    np.testing.assert_array_equal(trimaps[~near_an_edge], expected[~near_an_edge])
    # About half are mirrored, none stands on its head, and boxes differ in size and place.
    is_mirrored = red[:, 0, 0] > red[:, 0, -1]
    assert 20 < is_mirrored.sum() < 44
    assert (green[:, 0, 0] < green[:, -1, 0]).all()
    width = np.abs(red[:, 0, -1] - red[:, 0, 0])
    assert width.min() < 0.75 and width.max() > 0.9 and len(np.unique(width)) > 40


def test_without_change_nothing_changes(colourless, monkeypatch):
    monkeypatch.setattr(module, "SCALE", (1.0, 1.0))
    monkeypatch.setattr(module, "ASPECT", 1.0)
    image, trimap = noise()
    change = jax.jit(jax.vmap(lambda key: augment(jnp.array(image), jnp.array(trimap), key=key)))
    for changed, moved in zip(*change(KEYS[:4]), strict=True):
        is_mirrored = (np.asarray(moved) != trimap).any()
        expected, labels = (a[:, ::-1] if is_mirrored else a for a in (image, trimap))
        np.testing.assert_allclose(changed, expected / 255, atol=1e-6)
        np.testing.assert_array_equal(moved, labels)


def test_colours_change_and_the_trimap_keeps_its_labels(many):
    image, trimap = np.full((SIZE, SIZE, 3), (200, 120, 60), np.uint8), noise()[1]
    images, trimaps = many(image, trimap, KEYS)
    assert images.dtype == jnp.float32 and trimaps.dtype == jnp.uint8
    assert images.min() >= 0 and images.max() <= 1
    assert set(np.unique(trimaps)) == {1, 2, 3}
    colours = np.asarray(images[:, 0, 0])
    assert len(np.unique(colours, axis=0)) == len(KEYS)
    # On average the colour is kept; one in ten is grey but for the tint.
    np.testing.assert_allclose(colours.mean(0), np.array([200, 120, 60]) / 255, atol=0.06)
    assert 1 <= (colours.max(1) / colours.min(1) < 1.2).sum() <= 16


def test_the_key_decides(many):
    image, trimap = noise()
    first, again = many(image, trimap, KEYS), many(image, trimap, KEYS)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert len(np.unique(np.asarray(first[0][:, 0, 0, 0]))) > 60


def test_any_shape_and_dtype():
    for shape in ((1, 1), (5, 9)):
        for dtype in (jnp.uint8, jnp.float32):
            image, trimap = jnp.ones((*shape, 3), dtype), jnp.ones(shape, jnp.uint8)
            changed, moved = jax.jit(augment)(image, trimap, key=KEYS[0])
            assert changed.shape == (*shape, 3) and moved.shape == shape


def test_to_float():
    pixels = jnp.array([[[0, 51, 255]]], jnp.uint8)
    np.testing.assert_allclose(to_float(pixels), [[[0, 0.2, 1]]], atol=1e-7)
