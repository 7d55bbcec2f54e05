"""How images are normalised for networks that were trained on ImageNet."""

import jax.numpy as jnp
from jaxtyping import Array, Float

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(image: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
    """Takes RGB in [0, 1] to a mean of about 0 and a deviation of about 1 a channel."""
    return ((image - jnp.array(MEAN)) / jnp.array(STD)).astype(image.dtype)
