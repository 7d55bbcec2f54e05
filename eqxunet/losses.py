"""Loss of one image: binary cross-entropy on logits plus soft Dice."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

EPSILON = 1e-6


def cross_entropy(
    logits: Float[Array, "h w"], mask: Bool[Array, "h w"], counted: Bool[Array, "h w"]
) -> Float[Array, ""]:
    """Binary cross-entropy, mean over the pixels that count."""
    pixels = optax.sigmoid_binary_cross_entropy(logits, mask)
    return jnp.sum(pixels * counted) / jnp.maximum(jnp.sum(counted), 1)


def soft_dice(
    logits: Float[Array, "h w"], mask: Bool[Array, "h w"], counted: Bool[Array, "h w"]
) -> Float[Array, ""]:
    """1 - Dice of the foreground probability (Milletari, Navab, Ahmadi, 3DV 2016)."""
    probability = jax.nn.sigmoid(logits) * counted
    target = mask * counted
    overlap = 2 * jnp.sum(probability * target) + EPSILON
    return 1 - overlap / (jnp.sum(probability) + jnp.sum(target) + EPSILON)


def segmentation_loss(
    logits: Float[Array, "h w"], mask: Bool[Array, "h w"], counted: Bool[Array, "h w"]
) -> Float[Array, ""]:
    """Cross-entropy plus soft Dice of one image, in float32.

    Arguments:

    - `logits`: of foreground.
    - `mask`: true where the pixel is foreground.
    - `counted`: false where the border policy ignores the pixel.
    """
    logits = logits.astype(jnp.float32)
    return cross_entropy(logits, mask, counted) + soft_dice(logits, mask, counted)
