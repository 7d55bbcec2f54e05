"""Predictor: tiles against the whole image, flips against two passes, precision, lists."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import expit, logit, softmax

import eqxunet as eu
from eqxunet.data.augment import to_float
from eqxunet.errors import InputError
from eqxunet.evaluation import Predictor, forward, tiles
from eqxunet.models.layers import BatchNorm
from eqxunet.tasks import Semantic

RNG = np.random.default_rng(0)
CONFIG = eu.ModelConfig(channels=(8, 16, 24), size=32)
STRIDE = 4


def predictor(outputs=1, **options):
    """Of a U-Net of random weights, whose norms are far from the identity."""
    model, state = eu.build(CONFIG, outputs=outputs, key=jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (4, 64, 72, 3))
    state = eu.precise_statistics(model, state, [images])
    model = eqx.tree_at(_scales, model, replace_fn=lambda x: x + 0.5 * jnp.sin(7 * x))
    task = eu.Binary() if outputs == 1 else Semantic(tuple(map(str, range(outputs))))
    return Predictor(eqx.nn.inference_mode(model), state, task, batch_size=4, **options)


def _scales(model):
    is_norm = lambda node: isinstance(node, BatchNorm)  # noqa: E731
    leaves = jax.tree.leaves(model, is_leaf=is_norm)
    return [norm.scale for norm in leaves if is_norm(norm)]


@pytest.fixture(scope="module")
def binary():
    return predictor()


@pytest.fixture(scope="module")
def ternary():
    return predictor(outputs=3)


def picture(height, width):
    """Areas and texture, of which a network makes more than of noise."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (9 + 4 * i)) + np.sin(y / (13 - 3 * i) + x / 40) for i in range(3)]
    values = 128 + 45 * np.stack(waves, axis=-1) + RNG.normal(0, 12, (height, width, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


def whole(predictor, image):
    """In one pass."""
    return np.asarray(forward(predictor.model, predictor.state, to_float(image[None])))[0]


def gathered(bands, height):
    """Bands put together; each has to follow the one before."""
    parts = []
    for top, logits in bands:
        assert top == sum(map(len, parts))
        parts.append(logits)
    assert sum(map(len, parts)) == height
    return np.concatenate(parts)


@pytest.mark.parametrize(
    ("size", "tile"), [((256, 320), 72), ((256, 320), 16), ((132, 512), 72), ((128, 128), 72)]
)
def test_tiles_give_what_the_whole_image_gives_in_one_pass(binary, size, tile):
    image = picture(*size)
    want = whole(binary, image)
    assert want.std() > 0.5
    got = gathered(binary.bands(image, tile), size[0])
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_tiles_of_several_outputs(ternary):
    image = picture(256, 192)
    got = gathered(ternary.bands(image, 72), 256)
    np.testing.assert_allclose(got, whole(ternary, image), atol=1e-4)


@pytest.mark.parametrize(
    ("size", "continued"),
    [((203, 301), (204, 304)), ((37, 501), (64, 504)), ((1, 1), (32, 32)), ((50, 70), (64, 96))],
)
def test_sizes_that_do_not_fit_are_continued_by_the_mirror_image(binary, size, continued):
    image = picture(*size)
    missing = [(0, c - s) for c, s in zip(continued, size, strict=True)]
    larger = np.pad(image, [*missing, (0, 0)], "symmetric")
    want = whole(binary, larger)[: size[0], : size[1]]
    got = gathered(binary.bands(image, 72), size[0])
    assert got.shape == (*size, 1)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_without_overlap_there_are_seams(binary):
    image = picture(256, 256)
    got = gathered(binary.bands(image, 128, overlap=0), 256)
    off = np.abs(got - whole(binary, image)).max(axis=(1, 2))
    assert off[120:136].max() > 0.05


@pytest.mark.parametrize("size", [129, 200, 1000, 137])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 56), (32, 56), (4, 56), (70, 20), (64, 0)])
def test_weights_at_each_pixel_sum_to_one_and_none_is_next_to_a_border(size, tile, overlap):
    tiling = tiles.tiling(size, tile, overlap, STRIDE)
    total = np.zeros(tiling.end)
    for start, weights in zip(tiling.starts, tiling.weights, strict=True):
        assert start % STRIDE == 0
        total[start : start + tiling.side] += weights
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    assert size <= tiling.end < size + STRIDE
    outer = 7 * overlap // 16
    assert (tiling.weights[1:, :outer] == 0).all()
    assert (tiling.weights[:-1, tiling.side - outer :] == 0).all()
    steps = np.diff(tiling.starts)
    assert steps.min() > 0 and steps.max() <= -(-tile // STRIDE) * STRIDE


@pytest.mark.parametrize("tile", [0, -5])
def test_tiles_without_pixels_are_refused(binary, tile):
    with pytest.raises(InputError, match=f"at least, not {tile}"):
        binary.bands(picture(8, 8), tile)


def test_no_more_than_a_row_of_tiles_is_held(binary):
    """An image a thousand tiles high, of which the first row comes at once."""
    image = np.broadcast_to(picture(1, 64), (100_000, 64, 3))
    top, logits = next(binary.bands(image, 72))
    assert top == 0 and 0 < len(logits) <= 72


def test_a_flip_is_the_mean_of_two_probabilities(binary, ternary):
    images = np.stack([picture(32, 32) for _ in range(3)])
    for plain in (binary, ternary):
        passes = [plain.logits(images), plain.logits(images[:, :, ::-1])[:, :, ::-1]]
        probabilities = [
            expit(x[..., 0]) if x.shape[-1] == 1 else softmax(x, axis=-1)
            for x in np.asarray(passes, np.float64)
        ]
        flipped = dataclasses.replace(plain, flip=True)
        got = flipped.probability(flipped.logits(images))
        np.testing.assert_allclose(got, np.mean(probabilities, axis=0), atol=1e-6)
        assert np.abs(probabilities[0] - probabilities[1]).max() > 0.05


def test_a_flip_with_a_temperature_is_the_mean_of_what_it_makes_probable(binary):
    images = picture(32, 32)[None]
    passes = np.stack([binary.logits(images), binary.logits(images[:, :, ::-1])[:, :, ::-1]])
    flipped = dataclasses.replace(binary, flip=True, temperature=3.0)
    got = flipped.probability(flipped.logits(images))
    np.testing.assert_allclose(got, expit(passes[..., 0] / 3).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_a_mean_are_finite_where_probabilities_round(binary, sign):
    model = eqx.tree_at(lambda m: m.head.bias, binary.model, jnp.array([sign * 300.0]))
    flipped = dataclasses.replace(binary, model=model, flip=True)
    image = picture(32, 32)[None]
    got = flipped.logits(image)
    plain = dataclasses.replace(flipped, flip=False)
    ends = np.stack([plain.logits(image), plain.logits(image[:, :, ::-1])[:, :, ::-1]])
    assert (ends.min(0) - 1e-3 <= got).all() and (got <= ends.max(0) + 1e-3).all()


def test_tiles_are_flipped_too(binary):
    image = picture(256, 192)
    flipped = dataclasses.replace(binary, flip=True)
    passes = [whole(binary, image), whole(binary, image[:, ::-1])[:, ::-1]]
    got = gathered(flipped.bands(image, 72), 256)
    np.testing.assert_allclose(got, logit(expit(np.float64(passes)).mean(0)), atol=1e-3)


def test_bfloat16_computes_in_bfloat16(binary):
    images = picture(32, 32)[None]
    halved = dataclasses.replace(binary, precision="bfloat16").logits(images)
    want = np.asarray(
        forward(binary.model, binary.state, to_float(images).astype(jnp.bfloat16)), np.float32
    )
    np.testing.assert_array_equal(halved, want)
    exact = binary.logits(images)
    assert 0 < np.abs(halved - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("shape", [(600, 500), (1, 1), (2, 3, 5)])
def test_pixels_of_arrays_are_decoded_as_those_of_jax(ternary, shape):
    logits = RNG.normal(0, 3, (*shape, 3)).astype(np.float32)
    for decode in (ternary.probability, ternary.prediction):
        got, want = decode(logits), decode(jnp.asarray(logits))
        assert isinstance(got, np.ndarray) and isinstance(want, jax.Array)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_logits_are_resized_in_bands_as_in_one_piece(monkeypatch):
    logits = RNG.normal(0, 3, (32, 32, 2)).astype(np.float32)
    channels = [Image.fromarray(logits[..., k].copy()) for k in range(2)]
    want = [np.asarray(c.resize((71, 203), Image.Resampling.BILINEAR)) for c in channels]
    for pixels in (1, 1000, 1 << 20):
        monkeypatch.setattr(tiles, "_BAND", pixels)
        got = gathered(tiles.resized_bands(logits, (203, 71)), 203)
        np.testing.assert_allclose(got, np.stack(want, axis=-1), atol=1e-4)


def test_a_list_of_images_gives_a_list(binary):
    model, state = binary.model, binary.state
    images = [picture(20, 30), picture(41, 17), picture(32, 32)]
    singly = [eu.predict(model, state, image) for image in images]
    together = eu.predict(model, state, images)
    assert [p.shape for p in together] == [(20, 30), (41, 17), (32, 32)]
    for one, other in zip(singly, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert eu.predict(model, state, []) == []


def test_predict_takes_tiles_and_flips(binary):
    image = picture(192, 256)
    got = eu.predict(binary.model, binary.state, image, tile=72, flip=True)
    flipped = dataclasses.replace(binary, flip=True)
    want = expit(gathered(flipped.bands(image, 72), 192))[..., 0]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-6)
