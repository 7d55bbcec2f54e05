"""Random changes of one training example; the step maps them over the batch.

Flips, scale, aspect and position move image and labels together; colours change in the image
only. Everything derives from the key.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

SCALE = (0.6, 1.2)
"""Side of the crop over the image's; above 1 the image's edge pixels are repeated outwards."""
ASPECT = 1.25
"""Most that the crop is drawn out, as its height over its width or the other way round."""
BRIGHTNESS, CONTRAST, SATURATION, TINT = 0.25, 0.3, 0.4, 0.08
"""Most that each factor on the colours differs from 1; the tint's is one a channel."""
GREY = 0.1
"""How often colours are taken away."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, as ITU-R BT.601 has them."""


def to_float(image: UInt8[Array | np.ndarray, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Pixels from 0..255 to [0, 1]."""
    return jnp.asarray(image, jnp.float32) / 255


def augment(
    image: UInt8[Array, "h w 3"] | Float[Array, "h w 3"],
    labels: UInt8[Array, "h w"],
    *,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "h w 3"], UInt8[Array, "h w"]]:
    """Flips, crops and recolours an example; the image comes back in [0, 1]."""
    if image.dtype == jnp.uint8:
        image = to_float(image)
    crop_key, colour_key = jax.random.split(key)
    rows, columns = _crop(*labels.shape, key=crop_key)
    image = jnp.einsum("ih,hwc->iwc", _linear(rows), image, precision="highest")
    image = jnp.einsum("jw,iwc->ijc", _linear(columns), image, precision="highest")
    labels = labels[_nearest(rows)][:, _nearest(columns)]
    return _recolour(image, key=colour_key), labels


def _crop(
    h: int, w: int, *, key: PRNGKeyArray
) -> tuple[Float[Array, " {h}"], Float[Array, " {w}"]]:
    """Draws a box; returns the source row of each output row, and likewise for columns."""
    scale_key, aspect_key, row_key, column_key, flip_key = jax.random.split(key, 5)
    low, high = jnp.log(jnp.array(SCALE))
    scale = jnp.exp(jax.random.uniform(scale_key, minval=low, maxval=high))
    stretch = jnp.sqrt(ASPECT) ** jax.random.uniform(aspect_key, minval=-1.0)
    rows = _interval(h, scale * stretch, key=row_key)
    columns = _interval(w, scale / stretch, key=column_key)
    return rows, jnp.where(jax.random.bernoulli(flip_key), columns[::-1], columns)


def _interval(n: int, scale: Float[Array, ""], *, key: PRNGKeyArray) -> Float[Array, " {n}"]:
    """Pixel coordinates of `n` points spread evenly over a part of an axis, at random."""
    start = jax.random.uniform(key) * n * (1 - scale)
    return jnp.clip(start + (jnp.arange(n) + 0.5) * scale - 0.5, 0, n - 1)


def _linear(at: Float[Array, " n"]) -> Float[Array, "n n"]:
    """Weights of linear interpolation; a product with them beats gathering pixels everywhere."""
    return jnp.maximum(0, 1 - jnp.abs(at[:, None] - jnp.arange(at.size)[None]))


def _nearest(at: Float[Array, " n"]) -> Int[Array, " n"]:
    return jnp.round(at).astype(jnp.int32)


def _recolour(image: Float[Array, "h w 3"], *, key: PRNGKeyArray) -> Float[Array, "h w 3"]:
    brightness_key, contrast_key, saturation_key, grey_key, tint_key = jax.random.split(key, 5)
    grey = jnp.tensordot(image, jnp.array(LUMINANCE), 1, precision="highest")[..., None]
    saturation = _factor(SATURATION, key=saturation_key)
    saturation = jnp.where(jax.random.bernoulli(grey_key, GREY), 0.0, saturation)
    image = grey + saturation * (image - grey)
    mean = grey.mean()
    image = mean + _factor(CONTRAST, key=contrast_key) * (image - mean)
    tint = jax.random.uniform(tint_key, (1, 1, 3), minval=1 - TINT, maxval=1 + TINT)
    return jnp.clip(image * _factor(BRIGHTNESS, key=brightness_key) * tint, 0, 1)


def _factor(spread: float, *, key: PRNGKeyArray) -> Float[Array, ""]:
    return jax.random.uniform(key, minval=1 - spread, maxval=1 + spread)
