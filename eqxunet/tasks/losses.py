"""Losses of one image: cross-entropy on logits plus soft Dice."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, UInt8

from .metrics import EPSILON
from .task import IGNORED


def cross_entropy(
    logits: Float[Array, "h w"], mask: Bool[Array, "h w"], valid: Bool[Array, "h w"]
) -> Float[Array, ""]:
    """Binary cross-entropy, mean over the valid pixels."""
    pixels = optax.sigmoid_binary_cross_entropy(logits, mask)
    return jnp.sum(pixels * valid) / jnp.maximum(jnp.sum(valid), 1)


def soft_dice(
    logits: Float[Array, "h w"], mask: Bool[Array, "h w"], valid: Bool[Array, "h w"]
) -> Float[Array, ""]:
    """1 - Dice of the foreground probability (Milletari, Navab, Ahmadi, 3DV 2016)."""
    probability = jax.nn.sigmoid(logits) * valid
    target = mask * valid
    overlap = 2 * jnp.sum(probability * target) + EPSILON
    return 1 - overlap / (jnp.sum(probability) + jnp.sum(target) + EPSILON)


def segmentation_loss(
    logits: Float[Array, "h w"], mask: Bool[Array, "h w"], valid: Bool[Array, "h w"]
) -> Float[Array, ""]:
    """Cross-entropy plus soft Dice of one image, in float32.

    Arguments:

    - `logits`: of foreground.
    - `mask`: true where the pixel is foreground.
    - `valid`: false where the border policy ignores the pixel.
    """
    logits = logits.astype(jnp.float32)
    return cross_entropy(logits, mask, valid) + soft_dice(logits, mask, valid)


def softmax_loss(logits: Float[Array, "h w k"], target: UInt8[Array, "h w"]) -> Float[Array, ""]:
    """Cross-entropy of several classes plus their soft Dice, in float32.

    The soft Dice is the mean over the classes that the image's truth has: of the others, which are
    predicted wherever anything of them is, the cross-entropy alone takes care.

    Arguments:

    - `target`: the index of each pixel's class; 255 where it does not count.
    """
    logits = logits.astype(jnp.float32)
    valid = target != IGNORED
    truth = jax.nn.one_hot(target, logits.shape[-1])  # zeros where it does not count
    pixels = optax.softmax_cross_entropy(logits, truth)
    entropy = jnp.sum(pixels) / jnp.maximum(jnp.sum(valid), 1)
    probability = jax.nn.softmax(logits) * valid[..., None]
    overlap = 2 * jnp.sum(probability * truth, axis=(0, 1)) + EPSILON
    pixels_of_class = jnp.sum(truth, axis=(0, 1))
    dice = overlap / (jnp.sum(probability, axis=(0, 1)) + pixels_of_class + EPSILON)
    is_present = pixels_of_class > 0
    return entropy + jnp.sum((1 - dice) * is_present) / jnp.maximum(jnp.sum(is_present), 1)
