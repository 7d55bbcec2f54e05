"""What a trimap's pixels count as: 1 is pet, 2 background, 3 the border between them."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from ..config import Border as BorderPolicy
from .source import BACKGROUND, BORDER, PET


def foreground(
    trimap: UInt8[Array | np.ndarray, "*b h w"], border: BorderPolicy
) -> tuple[Bool[Array, "*b h w"], Bool[Array, "*b h w"]]:
    """Returns the foreground mask, and the pixels that count, under a border policy."""
    trimap = jnp.asarray(trimap)
    if border == "foreground":
        return trimap != BACKGROUND, jnp.ones(trimap.shape, bool)
    if border == "background":
        return trimap == PET, jnp.ones(trimap.shape, bool)
    return trimap == PET, trimap != BORDER
