"""Depthwise convolution of one example, channels last."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .window import window_over


def depthwise_conv2d(
    x: Float[Array, "h w c"], kernel: Float[Array, "k k 1 c"], *, stride: int = 1
) -> Float[Array, "-(-h//{stride}) -(-w//{stride}) c"]:
    """Convolves each channel of one example with a kernel of its own, with "SAME" padding."""
    window = window_over(x, kernel, stride, "SAME")
    padded = jnp.pad(x, (*window.padding, (0, 0)))
    rows, columns = ((n - 1) * stride + 1 for n in window.y_shape)
    taps = [
        padded[a : a + rows : stride, b : b + columns : stride] * kernel[a, b, 0]
        for a in range(window.size)
        for b in range(window.size)
    ]
    return sum(taps[1:], taps[0])
